"""The small reproduction of Discrete Diffusion VLA: chunks with two modes, by every decoder. Five minutes per seed.

    python scripts/reproduce_discrete_diffusion.py --seeds 0 1 2

A context of four numbers has two right chunks of 8 x 2 actions, as likely as each other, with a little noise. One
policy is trained by masked tokens and one token by token, of the same size; the first is then decoded in all ways. A
chunk is whole when all its actions are those of one mode, within two of 32 bins.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import tyro
from jaxtyping import Array, Float, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from vla_jax.codecs.bins import uniform_bins
from vla_jax.core import functional, runtime
from vla_jax.core.types import Demonstrations, Observation
from vla_jax.evaluation import manifest, results, statistics
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.vla_transformer import VlaTransformer, VlaTransformerConfig
from vla_jax.policies.base import Policy
from vla_jax.policies.bins import BinsConfig, BinsPolicy
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig, DiscreteDiffusionPolicy
from vla_jax.samplers.maskgit import MaskedOptions, ReleasedOptions

TABLE = "discrete_diffusion_vla"
CONTEXT, HORIZON, DIM, BINS = 4, 8, 2, 32
SEPARATION, NOISE, TOLERANCE = 0.35, 0.02, 2 * 2 / BINS
CODEC = uniform_bins(DIM, BINS)
DECODERS: dict[str, MaskedOptions | ReleasedOptions] = {
    "confidence": MaskedOptions(num_rounds=12),
    "released": ReleasedOptions(num_rounds=12),
    "gap": MaskedOptions(num_rounds=12, score="gap"),
    "random_order": MaskedOptions(num_rounds=12, score="random"),
    "one_shot_argmax": MaskedOptions(num_rounds=1),
    "one_shot_sampled": ReleasedOptions(num_rounds=1),
}
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2)
    num_train_steps: int = 1500
    batch_size: int = 128
    contexts: int = 64  # judged on
    samples: int = 32  # of each
    results: str = "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for seed in options.seeds:
        _, params = train(diffusion_policy(MaskedOptions()), seed, options)
        judged = {
            name: judge(functional.describe(diffusion_policy(decoding))[0], params, seed, options)
            for name, decoding in DECODERS.items()
        }
        judged["autoregressive"] = judge(*train(autoregressive_policy(), seed, options), seed, options)
        entries = [entry for name, found in judged.items() for entry in _entries(name, found, seed, options)]
        results.append(Path(options.results), f"seed{seed}", entries)


def backbone(rngs) -> VlaTransformer:
    """A pi0 without cameras: the context is the robot state."""
    shape = GemmaConfig(width=128, depth=4, mlp_dim=256, num_heads=4, num_kv_heads=1, head_dim=32)
    experts = dict(prefix_expert=shape, suffix_expert=shape)
    sizes = dict(cameras=(), vision=None, state_dim=CONTEXT, vocab_size=2, prompt_length=1, unroll=True)
    return VlaTransformer(VlaTransformerConfig(**sizes | experts), rngs)


def diffusion_policy(decoding: MaskedOptions | ReleasedOptions) -> Callable[..., Policy]:
    config = DiscreteDiffusionConfig(HORIZON, CODEC, decoding)
    return lambda rngs: DiscreteDiffusionPolicy(config, backbone(rngs), rngs)


def autoregressive_policy() -> Callable[..., Policy]:
    return lambda rngs: BinsPolicy(BinsConfig(HORIZON, CODEC), backbone(rngs), rngs)


def observe(context: Float[Array, "b 4"]) -> Observation:
    batch = len(context)
    return Observation({}, {}, context, jnp.ones((batch, 1), jnp.int32), jnp.ones((batch, 1), bool))


def modes(context: Float[Array, "b 4"]) -> Float[Array, "2 b h a"]:
    """The two right chunks: a curve that the context bends, shifted down or up."""
    phase = jnp.linspace(0, 1, HORIZON)[None, :, None] * jnp.pi + jnp.pi * context[:, None, :2]
    curve = 0.45 * jnp.sin(phase) * context[:, None, 2:]
    return jnp.stack([curve - SEPARATION, curve + SEPARATION])


def draw(key: Key[Array, ""], batch_size: int) -> Demonstrations:
    context_key, mode_key, noise_key = jax.random.split(key, 3)
    context = jax.random.uniform(context_key, (batch_size, CONTEXT), minval=-1, maxval=1)
    mode = jax.random.bernoulli(mode_key, shape=(batch_size,)).astype(int)
    actions = modes(context)[mode, jnp.arange(batch_size)]
    actions = actions + NOISE * jax.random.normal(noise_key, actions.shape)
    return Demonstrations(observe(context), actions, jnp.ones(actions.shape, bool), jnp.ones(batch_size))


def train(constructor: Callable[..., Policy], seed: int, options: Options):
    net, params = functional.init(constructor, jax.random.key(seed))
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-3, 100, options.num_train_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    @functools.partial(jax.jit, donate_argnums=0)
    def hundred(state, key):
        def step(state, key):
            params, opt_state = state
            draw_key, loss_key = jax.random.split(key)
            batch = draw(draw_key, options.batch_size)
            loss, grads = jax.value_and_grad(lambda p: net.bind(p).loss(loss_key, batch)[0].mean())(params)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        return jax.lax.scan(step, state, jax.random.split(key, 100))

    state = (params, optimizer.init(params))
    for block in range(options.num_train_steps // 100):
        state, losses = hundred(state, jax.random.fold_in(jax.random.key(seed + 1000), block))
        if block % 5 == 4:
            CONSOLE.print(f"  seed {seed}, {100 * (block + 1)} updates: {losses.mean():.3f} nats per token")
    return net, state[0]


def judge(net: functional.Net, params, seed: int, options: Options) -> dict[str, np.ndarray]:
    """Of every sampled chunk: whether it is whole, and whether it is the upper mode."""
    keys = jax.random.split(jax.random.key(seed + 2000))
    context = jax.random.uniform(keys[0], (options.contexts, CONTEXT), minval=-1, maxval=1)
    sample = jax.jit(lambda p: net.bind(p).sample(keys[1], observe(context), options.samples))
    away = jnp.abs(sample(params)[:, None] - modes(context)[None]).max((-2, -1))  # samples, modes, contexts
    whole = away.min(1) <= TOLERANCE
    return {"whole": np.asarray(whole).ravel(), "upper": np.asarray(away.argmin(1) == 1).ravel()}


def _entries(name: str, found: dict[str, np.ndarray], seed: int, options: Options) -> list[results.Entry]:
    """Shares with Wilson intervals."""
    account = manifest.manifest(seeds=(seed,), recipe=options)
    entries = []
    for cell, values in found.items():
        CONSOLE.print(f"  seed {seed}, {name}: {cell} {values.mean():.1%}")
        interval = statistics.wilson(int(values.sum()), values.size)
        share, count, records = float(values.mean()), values.size, {cell: values.astype(int).tolist()}
        entry = results.Entry(TABLE, name, cell, (seed,), count, share, interval, account, cell, records)
        entries.append(entry)
    return entries


if __name__ == "__main__":
    main()
