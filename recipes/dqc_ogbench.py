"""DQC on OGBench with low-dimensional goals, and the baselines that the same code makes by other lengths.

    python -m data_pipelines.ogbench generate --env cube-single --steps 100000 --out runs/ogbench/cube-single-play
    vla-jax train recipes/dqc_ogbench.py:quick --run runs/dqc        # 30,000 updates: nine minutes on one CPU core
    vla-jax eval runs/dqc                                            # success over OGBench's five tasks
    python scripts/reproduce_dqc_ogbench.py --methods dqc q_chunking --seeds 0 1 2

Needs the extra `ogbench`. `quick` is a size for one CPU core on a set made by OGBench's own oracle, `million` the same
on as many transitions as OGBench's own sets have, `maze` a point that finds its way; `paper` has the released values
for cube-triple, whose set of 100M transitions is not here. What to expect is in docs/dqc.md.
"""

import dataclasses
from collections.abc import Mapping

from vla_jax.core import errors
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.data.trajectories import HindsightConfig
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.learners import dqc
from vla_jax.learners.dqc import DQCConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.optimizers import Adam
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe
from vla_jax.training.recorded import RecordedConfig

# The released levels: DQC (5, 1) of cube-triple and cube-quadruple, QC and NS-5 of cube-triple. `dqc_093` backs up as
# steeply as QC, which the released DQC does for longer chunks and on cube-octuple.
METHODS = {
    "dqc": DQCConfig(5, 1, distillation_level=0.8, backup_level=0.5, aggregation="min"),
    "dqc_093": DQCConfig(5, 1, distillation_level=0.8, backup_level=0.93, aggregation="min"),
    "q_chunking": dqc.q_chunking(5, backup_level=0.93, aggregation="min"),
    "n_step": dqc.n_step(5, backup_level=0.5, aggregation="min"),
}
# As released for humanoidmaze.
MAZE_METHODS = {
    "dqc": DQCConfig(5, 1, distillation_level=0.5, backup_level=0.5, aggregation="mean"),
    "q_chunking": dqc.q_chunking(5, backup_level=0.5, aggregation="mean"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    env: str
    dataset: str  # folder under runs/ogbench
    state_dim: int
    action_dim: int
    goal_dims: tuple[int, ...]  # of the state


def _cubes(env: str, num_cubes: int) -> Task:
    """The positions of the cubes are the goal."""
    goal_dims = tuple(19 + 9 * cube + axis for cube in range(num_cubes) for axis in range(3))
    return Task(env, f"{env}-play", 19 + 9 * num_cubes, 5, goal_dims)


CUBE_SINGLE, CUBE_TRIPLE = _cubes("cube-single", 1), _cubes("cube-triple", 3)
MAZE = Task("pointmaze-large", "pointmaze-large-navigate", 2, 2, (0, 1))


def quick(method: str = "dqc", seed: int = 0) -> Recipe:
    """Networks of 2 x 256 on 100,000 transitions of cube-single."""
    return _recipe(f"dqc_ogbench/{method}", CUBE_SINGLE, _small(METHODS, method), steps=30_000, seed=seed)


def million(method: str = "dqc", seed: int = 0) -> Recipe:
    """100,000 updates on a million transitions (`generate --steps 1000000 --out runs/ogbench/cube-single-play-1m`)."""
    task = dataclasses.replace(CUBE_SINGLE, dataset="cube-single-play-1m")
    return _recipe(f"dqc_ogbench/{method}_1m", task, _small(METHODS, method), steps=100_000, seed=seed)


def maze(method: str = "dqc", seed: int = 0) -> Recipe:
    """A point in the large maze, on a million transitions (`generate --env pointmaze-large --mode navigate ...`)."""
    return _recipe(f"dqc_ogbench/{method}_maze", MAZE, _small(MAZE_METHODS, method), steps=30_000, seed=seed)


def paper() -> Recipe:
    """Cube-triple, the better of the two policy lengths: 1M steps on an accelerator."""
    learner = DQCConfig(25, 5, distillation_level=0.8, backup_level=0.93, aggregation="min")
    return _recipe("dqc_ogbench/paper", CUBE_TRIPLE, learner, steps=1_000_000, batch_size=4096)


def _small(methods: Mapping[str, DQCConfig], method: str) -> DQCConfig:
    """Raises ConfigError for a method that is not one of `methods`."""
    if method not in methods:
        raise errors.ConfigError(f"no method {method!r} here", fix=errors.closest(method, methods))
    critic = CriticConfig((256, 256), norm="after", activation="gelu", output_scale=1.0)
    return dataclasses.replace(methods[method], critic=critic)


def _recipe(name: str, task: Task, learner: DQCConfig, steps: int, batch_size: int = 256, seed: int = 0) -> Recipe:
    """OGBench scales its states, so nothing else is done to them."""
    horizon = learner.action_horizon
    backbone = StateMLPConfig(task.state_dim, horizon, task.action_dim, hidden_dims=learner.critic.hidden_dims)
    dataset = DatasetConfig(
        f"runs/ogbench/{task.dataset}/1.0.0", horizon, cameras=(), transitions=TransitionConfig(last_step="shows")
    )
    hindsight = HindsightConfig()
    return Recipe(
        name=name,
        policy=PolicyConfig(backbone, FlowConfig(horizon, task.action_dim, num_flow_steps=10, clip_actions=True)),
        learner=learner,
        optimizer=Adam(peak_lr=3e-4),
        fit=FitConfig(steps, log_every=500, checkpoint_every=2000, max_to_keep=1, seed=seed, scan_updates=50),
        # 50 episodes of each of the five tasks, ten at a time
        evaluation=EvaluationConfig(
            (OgbenchConfig(task.env, goal="oraclerep"),), learner.steps_run, num_episodes=250, batch_size=10
        ),
        data=DataConfig((), batch_size=batch_size, normalization=NormalizationConfig(mode="none")),
        recorded=RecordedConfig(dataset, 1.0, hindsight=hindsight, goal_dims=task.goal_dims, batch_size=batch_size),
    )
