"""The small reproduction of DQC on a chain whose values are known exactly. A minute per seed and method.

    python scripts/reproduce_dqc.py --seeds 0 1 2 3 4
    python scripts/reproduce_dqc.py --judge                # the paper's claims against results/

Sixty positions; every position has one right direction of two, drawn anew for every seed. A right step at fast pace
leads on by two, at slow pace by one, and a wrong one leads back by ten. Two modes make the recorded chunks of five:

    A  first fast and right, then half of the time so to the end and half of the time wrong to the end
    B  always right and slow

So "fast" is the better beginning if one goes on well (the exact value of that is `best`), and the worse one on average.
Acting is judged as it is and with a push back by one position on every fifth step on average: behind a push the rest of
a chunk that was chosen before it turns at the wrong places.
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
from jaxtyping import Array, Bool, Float, Int, Key

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from vla_jax.core import keys, runtime
from vla_jax.core.types import Observation, Params, Transitions
from vla_jax.evaluation import manifest, results, statistics, tables
from vla_jax.learners import dqc
from vla_jax.learners.dqc import DQC, DQCConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy

TABLE = "dqc"
LENGTH, GOAL, HORIZON, DIM = 60, 59, 5, 2
BACK, SIZE, NOISE = 10, 0.8, 0.05  # of a wrong step, in positions; of an action entry; of what was recorded
PUSHES = {"undisturbed": 0.0, "disturbed": 0.2}  # chance per step
BUDGET = 60  # steps of an episode, twice those of the best way
DISCOUNT = 0.97
SHARED = dict(
    discount=DISCOUNT,
    target_update_rate=0.01,
    backup_level=0.9,
    aggregation="mean",
    critic=CriticConfig((128, 128), norm="after", activation="gelu", output_scale=1.0),
)
METHODS = {
    "dqc": DQCConfig(HORIZON, 1, distillation_level=0.99, **SHARED),
    "n_step": dqc.n_step(HORIZON, **SHARED),
    "q_chunking": dqc.q_chunking(HORIZON, **SHARED),
}
NAIVE = dqc.naive(HORIZON, 1, **SHARED)  # the same training as q_chunking
UPDATES_PER_CALL = 1000
CONSOLE = rich.console.Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    methods: tuple[str, ...] = tuple(METHODS)
    num_train_steps: int = 5000
    batch_size: int = 256
    episodes: int = 256  # of every judgement
    results: str = "results"
    judge: bool = False  # print the claims against the results, and run nothing


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.judge:
        return print_verdict(results.load_table(Path(options.results), TABLE))
    runtime.enable_compile_cache()
    for seed in options.seeds:
        for name in options.methods:
            results.append(Path(options.results), f"chain_seed{seed}", run(name, seed, options))


def run(name: str, seed: int, options: Options) -> list[results.Entry]:
    learner, right = make(METHODS[name]), directions(seed)
    began = time.monotonic()
    state = train(learner, right, seed, options)
    CONSOLE.print(f"seed {seed}, {name}: {time.monotonic() - began:.0f} s")
    error = values_of(learner, state.params, right) - best_values(right)
    entries = _entries(name, METHODS[name], {"error": np.abs(error), "bias": error}, seed)
    rows = {name: learner} | ({"naive": make(NAIVE)} if name == "q_chunking" else {})
    for row, judged in rows.items():
        success = {cell: act(judged, state, right, seed, push, options.episodes) for cell, push in PUSHES.items()}
        entries += _entries(row, judged.config, success, seed)
    return entries


# --- the chain --------------------------------------------------------------------------------------------------------


def directions(seed: int) -> Float[Array, "positions"]:
    return jnp.asarray(np.random.default_rng(seed).choice([-1.0, 1.0], LENGTH), jnp.float32)


def advance(right: Float[Array, "positions"], position: Int[Array, "*b"], action: Float[Array, "*b a"]):
    """The next position; at the goal nothing moves."""
    is_right = jnp.sign(action[..., 0]) == right[position]
    step = jnp.where(is_right, jnp.where(action[..., 1] > 0, 2, 1), -BACK)
    return jnp.where(position == GOAL, GOAL, jnp.clip(position + step, 0, GOAL))


def behave(
    right: Float[Array, "positions"], start: Int[Array, "b"], is_fast: Bool[Array, "b"], goes_on: Bool[Array, "b"]
) -> tuple[Float[Array, "b h a"], Int[Array, "b h"]]:
    """Noiseless chunks of the modes and the positions they lead to; B is slow and goes on."""

    def step(position, i):
        direction = jnp.where((i == 0) | goes_on, 1, -1) * right[position]
        action = SIZE * jnp.stack([direction, jnp.where(is_fast, 1.0, -1.0)], axis=-1)
        position = advance(right, position, action)
        return position, (action, position)

    _, (actions, positions) = jax.lax.scan(step, start, jnp.arange(HORIZON))
    return jnp.swapaxes(actions, 0, 1), positions.T


def draw(right: Float[Array, "positions"], key: Key[Array, ""], batch_size: int) -> Transitions:
    """Chunks from anywhere. Arriving is worth 1 and ends the task."""
    start_key, mode_key, on_key, noise_key = jax.random.split(key, 4)
    start = jax.random.randint(start_key, (batch_size,), 0, GOAL)
    is_fast = jax.random.bernoulli(mode_key, shape=(batch_size,))
    goes_on = ~is_fast | jax.random.bernoulli(on_key, shape=(batch_size,))
    actions, positions = behave(right, start, is_fast, goes_on)
    arrived = positions == GOAL
    first = arrived & ~jnp.concatenate([jnp.zeros((batch_size, 1), bool), arrived[:, :-1]], axis=1)
    return Transitions(
        observation=observe(start),
        actions=jnp.clip(actions + NOISE * jax.random.normal(noise_key, actions.shape), -1, 1),
        rewards=first.astype(jnp.float32),
        discounts=1.0 - arrived,
        action_mask=jnp.ones(arrived.shape, bool),
        next_observation=observe(positions[:, -1]),
        extras={},
    )


def observe(position: Int[Array, "b"]) -> Observation:
    nothing = jnp.zeros((len(position), 1), jnp.int32)
    return Observation({}, {}, jax.nn.one_hot(position, LENGTH), nothing, nothing > 0)


def best_values(right: Float[Array, "positions"]) -> Float[np.ndarray, "starts"]:
    """Of beginning fast, when whoever acts goes on as well as anything in the data does: by iteration to the end."""
    start = jnp.arange(LENGTH)
    outcomes = []
    for is_fast, goes_on in ((True, True), (True, False), (False, True)):
        positions = np.asarray(behave(right, start, jnp.full(LENGTH, is_fast), jnp.full(LENGTH, goes_on))[1])
        arrived = positions == GOAL
        outcomes.append((arrived.any(1), DISCOUNT ** arrived.argmax(1).astype(float), positions[:, -1]))
    value = np.zeros(LENGTH)
    for _ in range(LENGTH * HORIZON):
        chunks = [np.where(ends, returns, DISCOUNT**HORIZON * value[last]) for ends, returns, last in outcomes]
        value = np.max(chunks, axis=0)
    return np.maximum(chunks[0], chunks[1])[:GOAL]


# --- learning and judging ---------------------------------------------------------------------------------------------


def make(config: DQCConfig) -> DQC:
    decoder = FlowConfig(config.action_horizon, DIM, clip_actions=True)
    backbone = StateMLPConfig(LENGTH, config.action_horizon, DIM, hidden_dims=(128, 128))
    optimizer = optax.adam(1e-3)
    return DQC(lambda rngs: FlowPolicy(decoder, StateMLP(backbone, rngs), rngs), DIM, LENGTH, 0, optimizer, config)


def train(learner: DQC, right: Float[Array, "positions"], seed: int, options: Options) -> dqc.DQCState:
    @functools.partial(jax.jit, donate_argnums=0)
    def many(state, right, key):
        def step(state, key):
            draw_key, update_key = jax.random.split(key)
            return learner.update(state, update_key, draw(right, draw_key, options.batch_size))

        state, metrics = jax.lax.scan(step, state, jax.random.split(key, UPDATES_PER_CALL))
        return state, jax.tree.map(lambda x: x[-100:].mean(), metrics)

    state = learner.init(keys.stream(seed, "init"))
    for block in range(options.num_train_steps // UPDATES_PER_CALL):
        state, metrics = many(state, right, keys.at_step(keys.stream(seed, "updates"), block))
        values, cloning = (metrics[name].item() for name in ("value/values", "policy/loss"))
        CONSOLE.print(f"  {UPDATES_PER_CALL * (block + 1)} updates: mean value {values:.3f}, policy loss {cloning:.3f}")
    return state


def values_of(learner: DQC, params: Params, right: Float[Array, "positions"]) -> Float[np.ndarray, "starts"]:
    """What the action critic says of the good beginning (with chunks as long as the backup: of the good chunk)."""
    start = jnp.arange(GOAL)
    fast = jnp.ones(GOAL, bool)
    actions = behave(right, start, fast, fast)[0][:, : learner.config.action_horizon]
    return np.asarray(jax.jit(learner.q_values)(params["action_critic"], observe(start).state, actions))


def act(
    learner: DQC, state: dqc.DQCState, right: Float[Array, "positions"], seed: int, push: float, episodes: int
) -> Bool[np.ndarray, "episodes"]:
    """Whether each episode arrives from position 0 within the budget. A push comes behind a step."""

    @jax.jit
    def roll_out(params, right, key):
        def step(position, inputs):
            action, push_key = inputs
            position = advance(right, position, action)
            pushed = jax.random.bernoulli(push_key, push, position.shape) & (position != GOAL)
            return jnp.where(pushed, jnp.maximum(position - 1, 0), position), None

        def decide(position, key):
            act_key, push_key = jax.random.split(key)
            actions, _ = learner.act(params, act_key, observe(position), learner.initial_memory(episodes))
            inputs = jnp.swapaxes(actions, 0, 1), jax.random.split(push_key, actions.shape[1])
            return jax.lax.scan(step, position, inputs)[0], None

        decisions = jax.random.split(key, BUDGET // learner.config.steps_run)
        return jax.lax.scan(decide, jnp.zeros(episodes, jnp.int32), decisions)[0] == GOAL

    return np.asarray(roll_out(learner.actor(state), right, keys.stream(seed, "judge")))


def _entries(row: str, config: DQCConfig, found: dict[str, np.ndarray], seed: int) -> list[results.Entry]:
    """Rates with Wilson's interval; of errors, one value per position and a bootstrap over positions."""
    account = manifest.manifest(seeds=(seed,), recipe=config)
    entries = []
    for cell, values in found.items():
        if values.dtype == bool:
            interval, values = statistics.wilson(int(values.sum()), values.size), values.astype(int)
        else:
            interval, values = statistics.bootstrap_mean(values.astype(np.float64)), values.astype(np.float64).round(5)
        CONSOLE.print(f"  {row}: {cell} {values.mean():.3f} {interval}")
        mean, records = float(values.mean()), {cell: values.tolist()}
        entries.append(results.Entry(TABLE, row, cell, (seed,), values.size, mean, interval, account, cell, records))
    return entries


def print_verdict(entries: tuple[results.Entry, ...]) -> None:
    """Every claim, the number it is about, and whether the whole interval of the joined seeds is on its side."""
    claims = (
        ("dqc", "error", "<", 0.05, "the distilled critic is near the best way to go on"),
        ("n_step", "bias", "<", -0.1, "n-step returns underestimate it"),
        ("q_chunking", "error", "<", 0.05, "the critic of whole chunks is right"),
        ("dqc", "disturbed", ">", 0.9, "choosing at every step stands pushes"),
        ("q_chunking", "disturbed", "<", 0.5, "whole chunks do not"),
    )
    for row, cell, sign, bound, claim in claims:
        measured = tables.measure([e for e in entries if (e.row, e.cell) == (row, cell)])
        low, high = measured.interval
        holds = high < bound if sign == "<" else low > bound
        number = f"{row} {cell} {measured.mean:.3f} {measured.interval}, {len(measured.seeds)} seeds"
        CONSOLE.print(f"{'holds' if holds else 'FAILS'}: {claim}: {number}, {sign} {bound}")


if __name__ == "__main__":
    main()
