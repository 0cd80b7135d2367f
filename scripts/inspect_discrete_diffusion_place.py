"""What is wrong with chunks on the robot task: how far the mean of draws is off, how far draws are from their mean, and
how much tokens tell about each other. Into results/discrete_diffusion_place_chunks; two minutes per seed.

    python scripts/reproduce_discrete_diffusion_place.py --arms discrete_diffusion      # trains them
    python scripts/inspect_discrete_diffusion_place.py --seeds 0 1 2

A policy is judged on frames of the demonstrations of the next seed, which it never saw.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import tyro
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from data_pipelines import tabletop
from recipes import discrete_diffusion_place, tabletop_demo
from scripts.reproduce_discrete_diffusion_place import OTHER_DECODERS, decoded_by
from vla_jax.core import functional, runtime
from vla_jax.core.types import Demonstrations, Params
from vla_jax.data.demonstrations import DemonstrationDataset
from vla_jax.envs.mjx.tabletop import TRANSLATION_STEP
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.losses.tokens import cross_entropy
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionPolicy, corrupt
from vla_jax.training import trained
from vla_jax.training.plain import to_plain

TABLE = "discrete_diffusion_place_chunks"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.025)  # masked; the last is one token of 40
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    frames: int = 512
    draws: int = 16  # chunks per frame
    run: str = f"discrete_diffusion_{discrete_diffusion_place.NUM_BINS}_bins_900"
    out: str = discrete_diffusion_place.FOLDER
    results: str = "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for seed in options.seeds:
        policy = trained.load(f"{options.out}/seed{seed}/{options.run}")
        batch = held_out(policy, f"{options.out}/seed{seed + 1}/data/1.0.0", seed + 1, options.frames)
        found = {}
        for row, decoding in {"discrete_diffusion": None, **OTHER_DECODERS}.items():
            recipe = policy.recipe if decoding is None else decoded_by(policy.recipe, decoding)
            net, _ = functional.describe(recipe.policy.constructor())
            found |= {(row, cell): values for cell, values in distances(net, policy.params, batch, options).items()}
        net = policy.learner.net.net
        found |= {(f"masked_{share}", "nats"): nats(net, policy.params, batch, share) for share in SHARES}
        account = manifest.manifest(seeds=(seed,), recipe=to_plain(policy.recipe))
        results.append(
            Path(options.results), f"seed{seed}", [_entry(*key, values, seed, account) for key, values in found.items()]
        )


def held_out(policy: trained.TrainedPolicy, folder: str, seed: int, num_frames: int) -> Demonstrations:
    """Frames spread evenly over other demonstrations, whose chunks are whole as far as they are run."""
    tabletop.generate(folder, tabletop_demo.data(seed))
    config = dataclasses.replace(policy.recipe.data.datasets[0], path=folder)
    frames = DemonstrationDataset(config, policy.edges.normalizer, policy.edges.encode)
    batch = frames.batch(frames.selection.frame(np.linspace(0, frames.num_frames - 1, 2 * num_frames).astype(np.int64)))
    whole = np.flatnonzero(batch.action_mask[:, : tabletop_demo.EXECUTION_HORIZON].all((1, 2)))
    picked = whole[np.linspace(0, len(whole) - 1, num_frames).astype(np.int64)]
    return jax.tree.map(lambda leaf: leaf[picked], batch)


def distances(
    net: functional.Net[DiscreteDiffusionPolicy], params: Params, batch: Demonstrations, options: Options
) -> dict[str, Float[np.ndarray, "b"]]:
    """In mm, over the steps that are run: from the demonstrated displacement of the hand to the mean of the draws, and
    the standard deviation of the draws around their mean."""

    @jax.jit
    def draw(params: Params, key: Key[Array, ""]) -> Float[Array, "n b 3"]:
        return displacement(net.bind(params).sample(key, batch.observation, options.draws))

    draws = np.asarray(draw(params, jax.random.key(0)))
    off = draws.mean(0) - np.asarray(displacement(batch.actions))
    spread = draws.var(0, ddof=1).sum(-1)
    return {"error_of_mean": np.sqrt(np.square(off).sum(-1)), "spread": np.sqrt(spread)}


def displacement(actions: Float[Array, "*n h a"]) -> Float[Array, "*n 3"]:
    """Of the hand by the steps that are run, in mm; quantiles at -1 and 1 leave these dims as the robot has them."""
    return 1000 * TRANSLATION_STEP * actions[..., : tabletop_demo.EXECUTION_HORIZON, :3].sum(-2)


def nats(
    net: functional.Net[DiscreteDiffusionPolicy], params: Params, batch: Demonstrations, share: float
) -> Float[np.ndarray, "b"]:
    """Of the masked tokens of each frame, the others as demonstrated; the mean of 16 draws of which are masked."""

    @jax.jit
    def one_draw(params: Params, key: Key[Array, ""]) -> Float[Array, "b"]:
        policy = net.bind(params)
        tokens = policy.encode_actions(jnp.where(batch.action_mask, batch.actions, 0.0))
        corrupted, masked = corrupt(key, tokens, jnp.full(len(tokens), share), policy.mask_id)
        return cross_entropy(policy.logits(policy.prefix(batch.observation), corrupted), tokens, masked)

    return np.mean([one_draw(params, jax.random.key(draw)) for draw in range(16)], axis=0)


def _entry(row: str, cell: str, values: Float[np.ndarray, "b"], seed: int, account) -> results.Entry:
    CONSOLE.print(f"  seed {seed}, {row}: {cell} {values.mean():.3f}")
    interval, records = statistics.bootstrap_mean(values), {cell: values.astype(float).round(4).tolist()}
    return results.Entry(TABLE, row, cell, (seed,), len(values), float(values.mean()), interval, account, cell, records)


if __name__ == "__main__":
    main()
