"""PA-RL on the maze of a point: noisy demonstrations over two routes, a critic on them, then a hundred episodes.

    python -c "from recipes import pa_rl_maze; pa_rl_maze.generate()"
    vla-jax train recipes/pa_rl_maze.py:imitation --run runs/pa_rl_maze/seed0/diffusion_imitation
    vla-jax train recipes/pa_rl_maze.py:critic --run runs/pa_rl_maze/seed0/diffusion_critic
    vla-jax train recipes/pa_rl_maze.py --run runs/pa_rl_maze/seed0/diffusion_pa_rl
    python scripts/reproduce_pa_rl.py --seeds 0 1 2 3 4                    # minutes per seed on one CPU core

The paper's claim is that any policy may be trained so: `study` takes the name of a class, and nothing else changes.
`slow` has demonstrations that are nearly always too late, for classes whose imitation of `study`'s is good already.
`paper_study` has the sizes and counts of the released AntMaze configuration. Recipes are made of these; in their last
phase updates follow every decision, where the script's follow every ten episodes, and the policy learns from half and
half, as the critic does. What to expect is in docs/pa_rl.md.
"""

import dataclasses

from data_pipelines import scripted
from data_pipelines.scripted import MazeData
from vla_jax.codecs.bins import uniform_bins
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs.planar.maze import DemonstratorConfig, MazeConfig
from vla_jax.learners import pa_rl
from vla_jax.learners.critic_ensemble import HLGauss
from vla_jax.learners.imitation import ImitationConfig
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
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe
from vla_jax.training.recorded import RecordedConfig

FOLDER = "runs/pa_rl_maze"
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


def study(policy: str = "diffusion") -> Study:
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
    """`study`, with slower demonstrations: a decoder that leaves their noise out is too late as well."""
    return dataclasses.replace(study(policy), demonstrator=DemonstratorConfig(speed=0.5))


def paper_study() -> Study:
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


# --- recipes, one per phase -----------------------------------------------------------------------------------------


def imitation(policy: str = "diffusion", seed: int = 0) -> Recipe:
    return _imitation(policy, study(policy), seed)


def critic(policy: str = "diffusion", seed: int = 0) -> Recipe:
    """Around the imitation, on the demonstrations alone."""
    return _critic(policy, study(policy), seed)


def quick(policy: str = "diffusion", seed: int = 0) -> Recipe:
    """Experience: 240 decisions in ten environments, two updates of the policy and of the critic behind each."""
    return _online(policy, study(policy), seed, rounds=2)


def paper_imitation(seed: int = 0) -> Recipe:
    return _imitation("paper", paper_study(), seed)


def paper_critic(seed: int = 0) -> Recipe:
    return _critic("paper", paper_study(), seed)


def paper(seed: int = 0) -> Recipe:
    return _online("paper", paper_study(), seed, rounds=HORIZON)


def generate(seed: int = 0) -> None:
    """Write the demonstrations that these learn from, a second."""
    of = study()
    scripted.generate(_data_path(seed), MazeData(of.env, of.demonstrator, of.num_demonstrations, seed))


def _data_path(seed: int) -> str:
    return f"{FOLDER}/seed{seed}/data/1.0.0"


def _imitation(name: str, of: Study, seed: int) -> Recipe:
    dataset = DatasetConfig(_data_path(seed), HORIZON, cameras=())
    normalization = NormalizationConfig(mode="none")  # both live in [-1, 1]
    steps = of.imitation_steps
    return Recipe(
        name=f"pa_rl_maze/{name}/imitation",
        policy=of.policy,
        learner=ImitationConfig(ema_decay=0.995),
        optimizer=Adam(peak_lr=of.imitation_lr),
        fit=FitConfig(steps, log_every=100, checkpoint_every=steps // 2, max_to_keep=1, seed=seed),
        evaluation=EvaluationConfig((of.env,), HORIZON, num_episodes=256, batch_size=256),
        data=DataConfig((dataset,), batch_size=of.imitation_batch, normalization=normalization, seed=seed),
    )


def _critic(name: str, of: Study, seed: int) -> Recipe:
    base, steps = _imitation(name, of, seed), of.offline_steps
    recorded = dataclasses.replace(base.data.datasets[0], transitions=TransitionConfig())
    return dataclasses.replace(
        base,
        name=f"pa_rl_maze/{name}/critic",
        learner=pa_rl.offline(of.learner),
        optimizer=Adam(peak_lr=of.critic_lr),
        base_optimizer=Adam(peak_lr=of.policy_lr),
        fit=FitConfig(steps, log_every=100, checkpoint_every=steps // 2, max_to_keep=1, seed=seed),
        recorded=RecordedConfig(recorded, 1.0, returns=True, return_tail=_never(of), batch_size=of.batch_size),
        start_from=f"{FOLDER}/seed{seed}/{name}_imitation",
    )


def _online(name: str, of: Study, seed: int, rounds: int) -> Recipe:
    """As many episodes as the study's, if each took all of its time."""
    base, decisions = _critic(name, of, seed), of.env.episode_length // HORIZON
    steps = of.collections * decisions
    return dataclasses.replace(
        base,
        name=f"pa_rl_maze/{name}/pa_rl",
        learner=of.learner,
        fit=FitConfig(
            steps, log_every=10, eval_every=steps // 10, checkpoint_every=steps // 2, max_to_keep=1, seed=seed
        ),
        replay=ReplayConfig(
            num_envs=of.episodes_per_collection,
            capacity=of.episodes_per_collection * (steps + decisions),
            warmup_decisions=decisions,
            rounds=rounds,
            critic_updates=1,
            batch_size=of.batch_size,
            seed=seed,
            returns=True,
            return_tail=_never(of),
        ),
        recorded=dataclasses.replace(base.recorded, fraction=0.5),
        start_from=f"{FOLDER}/seed{seed}/{name}_critic",
    )


def _never(of: Study) -> float:
    """The return of not arriving any more, -1 per step."""
    return -1 / (1 - of.learner.discount)
