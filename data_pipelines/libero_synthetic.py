"""Generated episodes in the schema of LIBERO's RLDS sets, for trying recipes and meshes without a simulator.

    generate("runs/pi0_droid/libero_synthetic", num_episodes=8, image_size=64)

What is real: names, types, shapes, the value ranges of actions and state. What is not: pictures are noise that drifts,
and the state is the running sum of the actions.
"""

from pathlib import Path

import numpy as np
import simplejpeg

from data_pipelines.libero_records import LiberoEpisode, write_dataset

_TASKS = ("pick up the milk and place it in the basket", "pick up the butter and place it in the basket")


def generate(out: str | Path, *, num_episodes: int = 8, length: int = 40, image_size: int = 256, seed: int = 0) -> Path:
    """Write `out/1.0.0` and return it; a pure function of its arguments. Raises DataError when it exists."""
    episodes = (_episode(np.random.default_rng((seed, k)), k, length, image_size) for k in range(num_episodes))
    return write_dataset(
        Path(out),
        episodes,
        description="Generated episodes in the schema of LIBERO; of no task and no robot.",
        metadata={"generated": True},
        image_size=image_size,
    )


def _episode(rng: np.random.Generator, number: int, length: int, size: int) -> LiberoEpisode:
    actions = np.clip(np.cumsum(rng.normal(0, 0.1, (length, 7)), axis=0), -1, 1).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    state = np.zeros((length, 8), np.float32)
    state[:, :6] = 0.05 * np.cumsum(actions[:, :6], axis=0)
    state[:, 6:] = 0.04 * (actions[:, 6:7] < 0) * np.array([1, -1])
    texture = rng.integers(0, 256, (size, 2 * size, 3), np.uint8)
    starts = [step % size for step in range(length)]
    pictures = [simplejpeg.encode_jpeg(np.ascontiguousarray(texture[:, x : x + size]), quality=95) for x in starts]
    return LiberoEpisode(
        file_path=f"generated/episode_{number:04d}",
        instruction=_TASKS[number % len(_TASKS)],
        images=tuple(pictures),
        wrist_images=tuple(reversed(pictures)),
        state=state,
        joint_state=np.zeros((length, 7), np.float32),
        actions=actions,
        suite="generated",
        task=number % len(_TASKS),
        init_state=np.zeros(0),
        scene_seed=0,
    )
