"""What the choice among samples does on OGBench's cube-single: critics on other data, and what the arm then does.

    python -m data_pipelines.ogbench generate --steps 20000 --seed 7 --out runs/ogbench/cube-single-play-held-out
    python scripts/inspect_dqc_ogbench.py --methods dqc q_chunking --seeds 0 1 2

Needs the run folders of scripts/reproduce_dqc_ogbench.py. Printed per run: its losses on the training set and on
recordings made with another seed; how far its scores spread over samples and how alike seeds rank them; how often the
hand shuts in the data, in samples and in choices, where it is open and not yet around the cube; and, by the number of
samples to choose from, how often the task is solved, the hand comes near the cube and is shut on nothing.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import tyro
from jaxtyping import Array, Bool, Float

import vla_jax  # noqa: F401  (first: sets XLA's CPU flags before jax starts)
from vla_jax.core import runtime
from vla_jax.data import trajectories, trajectory_sets
from vla_jax.data.trajectories import Trajectories
from vla_jax.envs import ogbench_sim
from vla_jax.learners.dqc import DQCState
from vla_jax.training import checkpoints, trained
from vla_jax.training.trained import TrainedPolicy

# of OGBench's state of cube-single, in its units: a decimetre is 1, an open hand 0 and a shut one 3
HAND, OPENING, CONTACT, CUBE = slice(12, 15), 17, 18, slice(19, 22)
NEAR = 0.3  # three centimetres
SHUT, IS_OPEN, SHUTS = 2.5, 1.0, 0.3  # opening of a hand shut on nothing, and of an open one; action that shuts it
ENVS, STEPS = 10, 200
CONSOLE = rich.console.Console(highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Options:
    methods: tuple[str, ...] = ("dqc", "q_chunking")
    seeds: tuple[int, ...] = (0, 1, 2)
    candidates: tuple[int, ...] = (1, 4, 32, 128)
    episodes: int = 50  # a multiple of ten
    rows: int = 1024  # of the held-out set, to score samples at
    held_out: str = "runs/ogbench/cube-single-play-held-out/1.0.0"
    runs: str = "runs/dqc_ogbench"
    dataset: str | None = None  # version folder of the training set; None: where the run read it


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runtime.enable_compile_cache()
    for method in options.methods:
        runs = [load(Path(options.runs) / f"{method}_seed{seed}") for seed in options.seeds]
        held_out = read(runs[0][0], options.held_out)
        training = read(runs[0][0], options.dataset)
        for seed, (policy, state) in zip(options.seeds, runs, strict=True):
            for name, rows in (("training", training), ("held out", held_out)):
                show(f"{method} {seed}, losses on the {name} set", losses(policy, state, rows))
        show(f"{method}, samples of seed {options.seeds[0]} as all score them", ranking(runs, held_out, options.rows))
        show(f"{method}, hand open beside the cube", shutting(runs[0][0], held_out, options.rows))
        for seed, (policy, _) in zip(options.seeds, runs, strict=True):
            own = policy.learner.config.steps_run
            for count, steps_run in itertools.product(options.candidates, sorted({1, own}, reverse=True)):
                found = act(policy, count, steps_run, options.episodes)
                show(f"{method} {seed}, {count} samples, {steps_run} steps run", found)


def show(what: str, found: dict[str, float]) -> None:
    CONSOLE.print(f"{what}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))


def load(run: Path) -> tuple[TrainedPolicy, DQCState]:
    policy = trained.load(run)
    return policy, checkpoints.load_learner(run, policy.learner.init(jax.random.key(0)))


def read(policy: TrainedPolicy, folder: str | None) -> Trajectories:
    recorded = policy.recipe.recorded
    dataset = dataclasses.replace(recorded.dataset, path=folder or recorded.dataset.path)
    rows = trajectory_sets.from_dataset(dataset, policy.edges.normalizer)
    return rows.replace(goals=rows.observations.state[:, np.asarray(recorded.goal_dims)])


# --- critics ----------------------------------------------------------------------------------------------------------


def losses(policy: TrainedPolicy, state: DQCState, rows: Trajectories) -> dict[str, float]:
    """Of 4096 chunks drawn with the same key, whatever the set."""
    horizon = policy.learner.config.backup_horizon
    starts = trajectories.chunk_starts(rows, horizon, arrives=True)
    hindsight = policy.recipe.recorded.hindsight
    batch = trajectories.goal_batch(rows, starts, jax.random.key(1), (4096,), horizon, hindsight)
    _, metrics = jax.jit(policy.learner.loss)(state.params, state.target_critic, jax.random.key(0), batch)
    wanted = ("chunk_critic/loss", "action_critic/loss", "value/loss", "policy/loss", "value/values")
    return {name: float(metrics[name]) for name in wanted if name in metrics}


def situations(
    rows: Trajectories, count: int, chosen: Bool[np.ndarray, "n"] | None = None
) -> tuple[Float[Array, "b s"], Float[Array, "b g"]]:
    """States drawn from the rows, and goals: resting places of the cube in other rows."""
    state_key, goal_key = jax.random.split(jax.random.key(2))
    resting = np.asarray(rows.goals[:, 2]) < NEAR
    allowed = np.ones(rows.num_rows, bool) if chosen is None else chosen

    def draw(key, mask):
        return jax.random.choice(key, jnp.asarray(np.flatnonzero(mask)), (count,))

    return rows.observations.state[draw(state_key, allowed)], rows.goals[draw(goal_key, resting)]


def ranking(runs: list[tuple[TrainedPolicy, DQCState]], rows: Trajectories, count: int) -> dict[str, float]:
    """Spread of the first run's scores over its samples, as steps of discounting, and how far runs agree on them."""
    state, goal = situations(rows, count)
    first = runs[0][0]
    samples, _ = jax.jit(first.learner.scored)(
        first.params, jax.random.key(3), trajectory_sets.state_observations(state), goal
    )
    features, score = jnp.concatenate([state, goal], axis=-1), jax.jit(first.learner.q_values)
    scores = [np.log(score(policy.params["action_critic"], features, samples)) for policy, _ in runs]
    between = [_agreement(*pair) for pair in itertools.combinations(scores, 2)]
    steps = scores[0].std(axis=-1).mean() / -np.log(first.learner.config.discount)
    return {"spread in steps": float(steps)} | ({"seeds agree": float(np.mean(between))} if between else {})


def _agreement(ours: Float[np.ndarray, "*b n"], others: Float[np.ndarray, "*b n"]) -> float:
    """Mean correlation over samples."""
    ours, others = (x - x.mean(axis=-1, keepdims=True) for x in (ours, others))
    return float(np.mean((ours * others).mean(-1) / (ours.std(-1) * others.std(-1) + 1e-9)))


def shutting(policy: TrainedPolicy, rows: Trajectories, count: int) -> dict[str, float]:
    """Shares of actions that shut the hand where it is open, within 5 cm of the cube but not yet around it."""
    state, actions = np.asarray(rows.observations.state), np.asarray(rows.actions)
    beside = (state[:, OPENING] < IS_OPEN) & (state[:, CONTACT] < 0.1) & _between(state, 0.2, 0.5)
    now, goal = situations(rows, count, beside)
    observation = trajectory_sets.state_observations(now)
    samples, scores = jax.jit(policy.learner.scored)(policy.params, jax.random.key(4), observation, goal)
    grips = np.asarray(samples[:, :, 0, -1])
    best = grips[np.arange(count), np.asarray(scores).argmax(axis=1)]
    return {
        "data shut": float((actions[beside, -1] > SHUTS).mean()),
        "samples shut": float((grips > SHUTS).mean()),
        "choices shut": float((best > SHUTS).mean()),
        "score and shutting correlate": _agreement(np.asarray(scores), grips),
    }


def _between(state: Float[np.ndarray, "n s"], nearest: float, farthest: float) -> Bool[np.ndarray, "n"]:
    distance = np.linalg.norm(state[:, HAND] - state[:, CUBE], axis=-1)
    return (distance > nearest) & (distance < farthest)


# --- acting -----------------------------------------------------------------------------------------------------------


@functools.cache
def simulators() -> list:
    return [ogbench_sim.make_env("cube-single", "oraclerep", None) for _ in range(ENVS)]


def act(policy: TrainedPolicy, count: int, steps_run: int, episodes: int) -> dict[str, float]:
    """Rates over episodes of all five tasks; `shut on nothing` is the share of steps."""
    config = dataclasses.replace(policy.learner.config, num_candidates=count, execution_horizon=steps_run)
    decide, envs = jax.jit(dataclasses.replace(policy.learner, config=config).act), simulators()
    solved, near, lifted, shut = [], [], [], []
    for first in range(0, episodes, ENVS):
        seen = [env.reset(seed=(first + i) // 5, options={"task": i % 5})[0] for i, env in enumerate(envs)]
        track, done = [[] for _ in envs], np.zeros(ENVS, bool)
        for step in range(0, STEPS, steps_run):
            state, goal = (
                np.stack([each[name] for each in seen]).astype(np.float32) for name in ("observation", "goal")
            )
            key = jax.random.fold_in(jax.random.key(first), step)
            actions, _ = decide(policy.params, key, trajectory_sets.state_observations(state), goal)
            for i, chunk in enumerate(np.asarray(actions)):
                for action in chunk if not done[i] else ():
                    seen[i], _, ended, _, _ = envs[i].step(action)
                    track[i].append(seen[i]["observation"])
                    done[i] |= ended
                    if done[i]:
                        break
            if done.all():
                break
        for states, ended in zip(map(np.stack, track), done, strict=True):
            solved.append(ended)
            near.append(_between(states, -1.0, NEAR).any())
            lifted.append((states[:, CUBE][:, 2] > 0.5).any())
            shut.append(((states[:, OPENING] > SHUT) & (states[:, CONTACT] < 0.5)).mean())
    named = {"solved": solved, "came near": near, "lifted": lifted, "shut on nothing": shut}
    return {name: float(np.mean(values)) for name, values in named.items()}


if __name__ == "__main__":
    main()
