"""DQC on OGBench with low-dimensional goals, and the baselines that the same code makes by other lengths.

    python -m data_pipelines.ogbench generate --env cube-single --steps 100000 --out runs/ogbench/cube-single-play
    python scripts/reproduce_dqc_ogbench.py --methods dqc q_chunking --seeds 0 1 2

Needs the extra `ogbench`. `quick` is a size for one CPU core on a set made by OGBench's own oracle; `paper` has the
released values for cube-triple, whose set of 100M transitions is not here. What to expect is in docs/dqc.md.
"""

import dataclasses

from vla_jax.data.trajectories import HindsightConfig
from vla_jax.envs.ogbench import OgbenchConfig
from vla_jax.learners import dqc
from vla_jax.learners.dqc import DQCConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.recipe import PolicyConfig


@dataclasses.dataclass(frozen=True)
class Study:
    """One run: its data, method and judgement."""

    policy: PolicyConfig
    learner: DQCConfig
    env: OgbenchConfig
    dataset: str  # version folder
    num_train_steps: int
    batch_size: int
    state_dim: int
    action_dim: int
    goal_dim: int
    lr: float = 3e-4
    hindsight: HindsightConfig = HindsightConfig()


def quick(method: str = "dqc", num_train_steps: int = 20_000) -> Study:
    """Networks of 2 x 256 on 100,000 transitions of cube-single."""
    critic = CriticConfig((256, 256), norm="after", activation="gelu", output_scale=1.0)
    learner = dataclasses.replace(METHODS[method], critic=critic)
    sizes = dict(state_dim=28, action_dim=5, goal_dim=3)
    return Study(
        policy=_policy(learner, 28, 5, critic.hidden_dims),
        learner=learner,
        env=OgbenchConfig("cube-single", goal="oraclerep"),
        dataset="runs/ogbench/cube-single-play/1.0.0",
        num_train_steps=num_train_steps,
        batch_size=256,
        **sizes,
    )


def paper() -> Study:
    """Cube-triple, the better of the two policy lengths: 1M steps on an accelerator."""
    learner = DQCConfig(25, 5, distillation_level=0.8, backup_level=0.93, aggregation="min")
    sizes = dict(state_dim=46, action_dim=5, goal_dim=9)
    return Study(
        policy=_policy(learner, 46, 5, learner.critic.hidden_dims),
        learner=learner,
        env=OgbenchConfig("cube-triple", goal="oraclerep"),
        dataset="runs/ogbench/cube-triple-play/1.0.0",
        num_train_steps=1_000_000,
        batch_size=4096,
        **sizes,
    )


def _policy(learner: DQCConfig, state_dim: int, action_dim: int, hidden_dims: tuple[int, ...]) -> PolicyConfig:
    horizon = learner.action_horizon
    backbone = StateMLPConfig(state_dim, horizon, action_dim, hidden_dims=hidden_dims)
    return PolicyConfig(backbone, FlowConfig(horizon, action_dim, num_flow_steps=10, clip_actions=True))


# The released levels: DQC (5, 1) of cube-triple and cube-quadruple, QC and NS-5 of cube-triple.
METHODS = {
    "dqc": DQCConfig(5, 1, distillation_level=0.8, backup_level=0.5, aggregation="min"),
    "q_chunking": dqc.q_chunking(5, backup_level=0.93, aggregation="min"),
    "n_step": dqc.n_step(5, backup_level=0.5, aggregation="min"),
}
