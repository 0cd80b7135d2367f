"""The shapes that both sides build, and the arrays they are given."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Expert:
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def layer_entries(self) -> int:
        """Weights of one layer's matrix products."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.width * (heads * self.head_dim + 3 * self.mlp_dim)


# openpi's "dummy" Gemma and SigLIP mu/14, two cameras: 539 tokens with the state and the chunk.
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
IMAGE_SIZE, PATCH_SIZE = 224, 14
VISION = Expert(width=32, depth=1, mlp_dim=128, num_heads=2, num_kv_heads=2, head_dim=16)
EXPERT = Expert(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16)
VOCAB_SIZE, PROMPT_LENGTH, STATE_DIM = 512, 16, 32
ACTION_HORIZON, ACTION_DIM, NUM_FLOW_STEPS = 10, 32, 10
PEAK_LR, CLIP_NORM, EMA_DECAY = 1e-4, 1.0, 0.99

# One layer of pi0 as published: Gemma 2B and the action expert, one example.
PUBLISHED = (Expert(2048, 1, 16384, 8, 1, 256), Expert(1024, 1, 4096, 8, 1, 256))
LAYER_TOKENS = (528, 11)


def layer_flops(batch_size: int) -> float:
    """Of forward and backward of the published layer: three times the products of the forward pass."""
    dense = sum(2 * n * expert.layer_entries() for n, expert in zip(LAYER_TOKENS, PUBLISHED, strict=True))
    num_tokens = sum(LAYER_TOKENS)
    attention = 4 * num_tokens**2 * PUBLISHED[0].num_heads * PUBLISHED[0].head_dim
    return 3.0 * batch_size * (dense + attention)


def arrays(batch_size: int) -> dict[str, np.ndarray]:
    """Pictures as uint8, everything else as the models want it; all prompt tokens are real."""
    rng = np.random.default_rng(0)
    shape = (batch_size, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        **{name: rng.integers(0, 256, shape, np.uint8) for name in CAMERAS},
        "state": rng.normal(size=(batch_size, STATE_DIM)).astype(np.float32),
        "prompt": rng.integers(0, VOCAB_SIZE, (batch_size, PROMPT_LENGTH)).astype(np.int32),
        "actions": rng.normal(size=(batch_size, ACTION_HORIZON, ACTION_DIM)).astype(np.float32),
    }


def layer_arrays(batch_size: int) -> list[np.ndarray]:
    """Tokens of both experts."""
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(batch_size, n, expert.width)).astype(np.float32)
        for n, expert in zip(LAYER_TOKENS, PUBLISHED, strict=True)
    ]
