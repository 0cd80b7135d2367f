"""Our side: `vla_jax`'s pi0 at the shapes of shapes.py, trained by `Imitation`, which is what recipes run.

--layers unrolled writes the layers out and keeps what the gradient needs, as our tiny recipes do; --layers scanned
scans and recomputes, as openpi does.
"""

import argparse

import jax
import jax.numpy as jnp
import shapes
import timing

from vla_jax.core import functional, runtime
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.learners.imitation import Imitation, ImitationConfig
from vla_jax.nets.attention import block_mask
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.mixture import Mixture, Stream
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.training.optimizers import AdamW
from vla_jax.training.plan import counting


def expert(shape: shapes.Expert) -> GemmaConfig:
    return GemmaConfig(**vars(shape))


def learner(dtype: str, runs: dict) -> Imitation:
    vision = shapes.VISION
    config = VlaTransformerConfig(
        cameras=shapes.CAMERAS,
        state_dim=shapes.STATE_DIM,
        vocab_size=shapes.VOCAB_SIZE,
        prompt_length=shapes.PROMPT_LENGTH,
        vision=SiglipConfig(
            vision.width, vision.depth, vision.mlp_dim, vision.num_heads, shapes.PATCH_SIZE, shapes.IMAGE_SIZE
        ),
        prefix_expert=expert(shapes.EXPERT),
        suffix_expert=expert(shapes.EXPERT),
        state_token="suffix",
        compute_dtype=dtype,
        **runs,
    )
    decoder = FlowConfig(shapes.ACTION_HORIZON, shapes.ACTION_DIM, shapes.NUM_FLOW_STEPS, time_distribution="pi0")
    optimizer = AdamW(peak_lr=shapes.PEAK_LR, clip_norm=shapes.CLIP_NORM, b2=0.95, weight_decay=1e-10).build()
    return Imitation(
        lambda rngs: FlowPolicy(decoder, VlaTransformer(config, rngs), rngs),
        optimizer,
        ImitationConfig(ema_decay=shapes.EMA_DECAY),
    )


def batch(batch_size: int) -> Demonstrations:
    given = {name: jnp.asarray(array) for name, array in shapes.arrays(batch_size).items()}
    observation = Observation(
        images={name: given[name] for name in shapes.CAMERAS},
        image_mask={name: jnp.ones(batch_size, bool) for name in shapes.CAMERAS},
        state=given["state"],
        prompt=given["prompt"],
        prompt_mask=jnp.ones_like(given["prompt"], bool),
    )
    actions = given["actions"]
    return Demonstrations(observation, actions, jnp.ones_like(actions, bool), jnp.ones(batch_size))


def policy_case(name: str, dtype: str, runs: dict) -> timing.Case:
    what, size = name.split("_b")
    ours, demonstrations = learner(dtype, runs), batch(int(size))
    state = jax.jit(ours.init)(jax.random.key(0), demonstrations)
    if what == "train":

        def train(state, demonstrations):
            return ours.update(state, jax.random.fold_in(jax.random.key(1), state.step), demonstrations)[0]

        return timing.Case(train, state, (demonstrations,), state.params, counting.count(train, state, demonstrations))

    def step(carry, params, observation):
        key = jax.random.wrap_key_data(carry[0])
        return jax.random.key_data(jax.random.split(key)[0]), ours.act(params, key, observation, ())[0]

    carry = (jax.random.key_data(jax.random.key(1)), jnp.zeros((int(size), shapes.ACTION_HORIZON, shapes.ACTION_DIM)))
    return timing.Case(step, carry, (state.params, demonstrations.observation), state.params)


def layer_case(name: str, dtype: str, runs: dict) -> timing.Case:
    """Both experts through one published layer, and the gradients of its weights and tokens."""
    size = int(name.split("_b")[1])
    net, params = functional.init(lambda rngs: Mixture(*map(expert, shapes.PUBLISHED), rngs, **runs), jax.random.key(0))
    tokens = [jnp.asarray(x, dtype) for x in shapes.layer_arrays(size)]
    prefix, suffix = shapes.LAYER_TOKENS
    positions = jnp.broadcast_to(jnp.arange(prefix + suffix), (size, prefix + suffix))
    seen = block_mask((positions >= prefix).astype(jnp.int32), jnp.ones_like(positions, bool))

    def loss(params, tokens):
        streams = [Stream(tokens[0], positions[:, :prefix]), Stream(tokens[1], positions[:, prefix:])]
        outputs = net.bind(params).forward(streams, seen)
        return sum(jnp.square(x.astype(jnp.float32)).mean() for x in outputs.tokens)

    def step(state, params, tokens):
        return jax.grad(loss, argnums=(0, 1))(params, tokens)

    state = jax.tree.map(jnp.zeros_like, (params, tokens))
    return timing.Case(step, state, (params, tokens), params)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", choices=("unrolled", "scanned"), default="unrolled")
    options = timing.options(parser)
    runs = dict(unroll=True) if options.layers == "unrolled" else dict(remat=True)
    make = layer_case if options.case.startswith("layer") else policy_case
    kernels = runtime.kernel_options(jax.default_backend())  # as fit and the server compile
    timing.run(make(options.case, options.dtype, runs), options, kernels)


if __name__ == "__main__":
    main()
