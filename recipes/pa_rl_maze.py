"""PA-RL on the maze of a point: noisy demonstrations over two routes, a critic on them, then a hundred episodes.

    python scripts/reproduce_pa_rl.py --seeds 0 1 2 3 4                    # minutes per seed on one CPU core

The paper's claim is that any policy may be trained so: `quick` takes the name of a class, and nothing else changes.
`slow` has demonstrations that are nearly always too late, for classes whose imitation of `quick`'s is good already.
`paper` has the sizes and counts of the released AntMaze configuration. What to expect is in docs/pa_rl.md.
"""

import dataclasses

from vla_jax.codecs.bins import uniform_bins
from vla_jax.envs.planar.maze import DemonstratorConfig, MazeConfig
from vla_jax.learners.critic_ensemble import HLGauss
from vla_jax.learners.pa_rl import PARLConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.nets.vla_transformer import VlaTransformerConfig
from vla_jax.policies.bins import BinsConfig
from vla_jax.policies.diffusion import DiffusionConfig
from vla_jax.policies.discrete_diffusion import DiscreteDiffusionConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.samplers.action_ascent import AscentOptions
from vla_jax.samplers.diffusion import NoiseSchedule
from vla_jax.samplers.maskgit import ReleasedOptions
from vla_jax.training.recipe import PolicyConfig

STATE_DIM, HORIZON, ACTION_DIM = 2, 2, 2
_DISCOUNT = 0.97  # per control step: episodes have 48


@dataclasses.dataclass(frozen=True)
class Study:
    """The three phases of one run."""

    policy: PolicyConfig
    learner: PARLConfig
    env: MazeConfig = MazeConfig("steps")
    demonstrator: DemonstratorConfig = DemonstratorConfig()
    num_demonstrations: int = 200  # episodes
    imitation_steps: int = 3000
    imitation_batch: int = 128
    imitation_lr: float = 1e-3
    offline_steps: int = 1000  # of the critic alone
    collections: int = 10  # of experience, each followed by updates
    episodes_per_collection: int = 10
    updates_per_decision: float = 0.25  # of the policy, and then of the critic
    batch_size: int = 64
    critic_lr: float = 1e-3
    policy_lr: float = 3e-4


def quick(policy: str = "diffusion") -> Study:
    """Minutes on one core."""
    learner = PARLConfig(
        execution_horizon=HORIZON,
        num_samples=16,
        ascent=AscentOptions(num_kept=4, num_steps=5, step_size=3e-3),
        head=HLGauss(-1 / (1 - _DISCOUNT), 0.0, 51),
        num_critics=2,
        critic=CriticConfig((128, 128), activation="silu", output_scale=0.01),
        discount=_DISCOUNT,
        target_update_rate=0.02,
        base_ema_decay=0.99,
    )
    return Study(POLICIES[policy], learner)


def slow(policy: str = "diffusion") -> Study:
    """`quick`, with slower demonstrations: a decoder that leaves their noise out is too late as well."""
    return dataclasses.replace(quick(policy), demonstrator=DemonstratorConfig(speed=0.5))


def paper() -> Study:
    """The released AntMaze values, per trajectory of one environment: hours on an accelerator."""
    backbone = StateMLPConfig(
        STATE_DIM, HORIZON, ACTION_DIM, (256,), activation="silu", residual_blocks=3, time_features=128
    )
    policy = PolicyConfig(backbone, DiffusionConfig(HORIZON, ACTION_DIM, NoiseSchedule(5)))
    learner = PARLConfig(
        execution_horizon=HORIZON, critic=CriticConfig((256,) * 4, activation="silu", output_scale=0.01)
    )
    return Study(
        policy,
        learner,
        imitation_steps=3_000_000,
        imitation_batch=256,
        imitation_lr=3e-4,
        offline_steps=1_000_000,
        collections=1000,
        episodes_per_collection=1,
        updates_per_decision=float(HORIZON),  # one per control step
        batch_size=256,
        critic_lr=3e-4,
        policy_lr=5e-5,
    )


_MLP = StateMLPConfig(STATE_DIM, HORIZON, ACTION_DIM, (128, 128), time_features=32)
_EXPERT = GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=16)
_TRANSFORMER = VlaTransformerConfig(
    cameras=(),
    vision=None,
    state_dim=STATE_DIM,
    vocab_size=2,
    prompt_length=1,
    prefix_expert=_EXPERT,
    suffix_expert=_EXPERT,
    unroll=True,
)
_CODEC = uniform_bins(ACTION_DIM, 32)
POLICIES = {
    "diffusion": PolicyConfig(_MLP, DiffusionConfig(HORIZON, ACTION_DIM, NoiseSchedule(5))),
    "flow": PolicyConfig(_MLP, FlowConfig(HORIZON, ACTION_DIM, num_flow_steps=5, clip_actions=True)),
    "bins": PolicyConfig(_TRANSFORMER, BinsConfig(HORIZON, _CODEC)),
    # its samples have to differ for a critic to choose: the paper's decoder takes the likeliest tokens in doubt
    "discrete_diffusion": PolicyConfig(
        _TRANSFORMER, DiscreteDiffusionConfig(HORIZON, _CODEC, ReleasedOptions(num_rounds=4))
    ),
}
