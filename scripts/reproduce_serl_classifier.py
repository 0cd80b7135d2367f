"""SERL's success classifier on synthetic pictures of 32 x 32: is the block in the bin? A minute per seed.

    python scripts/reproduce_serl_classifier.py --seeds 0 1 2

A camera that stays where it is sees a bin (an outlined square, give or take a pixel), and a block (a filled one)
anywhere on a noisy table, under any light. Success is the block inside; half of the failures are near misses. The trunk
is trained too, since pretrained weights are not at hand. Training is 300 updates of 64 pictures; new pictures judge.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from vla_jax.core import runtime
from vla_jax.core.types import Observation
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.learners.labelled import Examples
from vla_jax.learners.success_classifier import ClassifierConfig, SuccessClassifier
from vla_jax.nets.pixels import PixelConfig

SIZE, BIN, BLOCK = 32, 5.0, 2.0  # pixels: a picture's side, half sides of bin and block
PIXELS = PixelConfig(("front",), (SIZE, SIZE), filters=16, stages=(1, 1), bottleneck=64)
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train_steps: int = 300
    batch_size: int = 64
    held_out: int = 1000
    results: str = "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    learner = SuccessClassifier(PIXELS, optax.adam(1e-3), ClassifierConfig(crop_pad=2, frozen_trunk=False))
    for seed in options.seeds:
        began = time.monotonic()
        key = jax.random.key(seed)
        state = learner.init(jax.random.fold_in(key, 0))
        state, losses = train(learner, state, jax.random.fold_in(key, 1), options)
        held_out = draw(jax.random.fold_in(key, 2), options.held_out // 2)
        judge = jax.jit(functools.partial(learner.probability, state))
        right = np.concatenate([judge(held_out.positives) >= 0.5, judge(held_out.negatives) < 0.5]).astype(int)
        account = manifest.manifest(seeds=(seed,), recipe=options)
        account["cost"] = {"updates": options.num_train_steps, "seconds": round(time.monotonic() - began, 1)}
        interval = statistics.wilson(int(right.sum()), right.size)
        share, records = float(right.mean()), {"accuracy": right.tolist()}
        where = ("serl_classifier", "classifier", "accuracy", (seed,), right.size, share, interval, account)
        entry = results.Entry(*where, "accuracy", records)
        results.append(Path(options.results), f"seed{seed}", [entry])
        CONSOLE.print(
            f"seed {seed}: {right.mean():.1%} of new pictures, loss {losses[-20:].mean():.3f}, {account['cost']}"
        )


@functools.partial(jax.jit, static_argnums=(0, 3))
def train(learner: SuccessClassifier, state, key: Key[Array, ""], options: Options):
    def step(state, key):
        data_key, update_key = jax.random.split(key)
        state, metrics = learner.update(state, update_key, draw(data_key, options.batch_size // 2))
        return state, metrics["classifier/loss"]

    return jax.lax.scan(step, state, jax.random.split(key, options.num_train_steps))


def draw(key: Key[Array, ""], count: int) -> Examples:
    """As many successes as failures."""
    place_key, inside_key, near_key, far_key, look_key = jax.random.split(key, 5)
    bins = SIZE / 2 + jax.random.uniform(place_key, (2 * count, 2), minval=-1.0, maxval=1.0)
    room = BIN - BLOCK - 1
    inside = bins[:count] + jax.random.uniform(inside_key, (count, 2), minval=-room, maxval=room)
    angle = jax.random.uniform(near_key, (count,), maxval=2 * jnp.pi)
    direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    near = direction / jnp.abs(direction).max(-1, keepdims=True) * (BIN + BLOCK + 1)  # just outside of the bin
    far = jax.random.uniform(far_key, (count,), minval=1.0, maxval=2.0)[:, None] * near
    is_near = (jnp.arange(count) % 2 == 0)[:, None]
    outside = bins[count:] + jnp.where(is_near, near, far)
    pictures = paint(look_key, bins, jnp.concatenate([inside, outside]))
    return Examples(_seen(pictures[:count]), _seen(pictures[count:]))


def paint(key: Key[Array, ""], bins: Float[Array, "b 2"], blocks: Float[Array, "b 2"]) -> Array:
    noise_key, light_key, colour_key = jax.random.split(key, 3)
    batch = bins.shape[0]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(SIZE), jnp.arange(SIZE), indexing="ij"), -1)[None] + 0.5
    from_bin = jnp.abs(grid - bins[:, None, None]).max(-1)
    from_block = jnp.abs(grid - blocks[:, None, None]).max(-1)
    wall = (jnp.abs(from_bin - BIN) < 0.75)[..., None]
    block = (from_block < BLOCK)[..., None]
    colours = jax.random.uniform(colour_key, (2, batch, 1, 1, 3), minval=0.5)
    picture = 0.35 + 0.08 * jax.random.normal(noise_key, (batch, SIZE, SIZE, 3))
    picture = jnp.where(wall, 0.4 * colours[0], picture)
    picture = jnp.where(block, colours[1], picture)
    light = jax.random.uniform(light_key, (batch, 1, 1, 1), minval=0.6, maxval=1.2)
    return (255 * jnp.clip(picture * light, 0, 1)).astype(jnp.uint8)


def _seen(pictures: Array) -> Observation:
    batch = pictures.shape[0]
    ones = jnp.ones((batch, 1), bool)
    return Observation({"front": pictures}, {"front": ones[:, 0]}, jnp.zeros((batch, 1)), ones.astype(jnp.int32), ones)


if __name__ == "__main__":
    main()
