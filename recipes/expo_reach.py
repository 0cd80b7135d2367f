"""EXPO (arXiv 2507.07986) at the size of one CPU core: a point, two opposite goals, demonstrations of low precision.

    python -c "from recipes import expo_reach; expo_reach.generate()"
    vla-jax train recipes/expo_reach.py:imitation --run runs/expo_reach/seed0/study_imitation
    vla-jax train recipes/expo_reach.py --run runs/expo_reach/seed0/study_expo
    python scripts/reproduce_expo.py --seeds 0 1 2 3 4       # all arms and the second check, and their table

`quick` and `paper` are recipes, made of the experiments below: `study` is what is run, `long` goes on, and `fine` has
goals that the choice among base samples does not always meet. `sharp` is the second check: every demonstration stays
0.04 per action entry short of small goals. `paper` has the paper's sizes, optimizers and update ratio on the task of
`quick`. The script runs all seeds of an experiment side by side in one program, which recipes do not.
"""

import dataclasses

from data_pipelines import scripted
from data_pipelines.scripted import ReachData
from vla_jax.core import errors
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs.planar.reach import DemonstratorConfig, ReachConfig
from vla_jax.learners.expo import EXPOConfig
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.diffusion import DiffusionConfig
from vla_jax.samplers.diffusion import NoiseSchedule
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam, AdamW
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe
from vla_jax.training.recorded import RecordedConfig

FOLDER = "runs/expo_reach"
STATE_DIM = ACTION_DIM = 2


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Demonstrations, imitation, then rounds of collection and learning; one control step per decision."""

    learner: EXPOConfig
    decoder: DiffusionConfig
    backbone: StateMLPConfig
    optimizer: Adam = Adam(peak_lr=3e-4)  # critic, edit and temperature
    base_optimizer: AdamW = AdamW(peak_lr=3e-4, decay_steps=3_000_000, weight_decay=1e-4, clip_norm=None)
    env: ReachConfig = ReachConfig()
    demonstrator: DemonstratorConfig = DemonstratorConfig()
    num_demonstrations: int = 100
    imitation_updates: int = 2000
    env_steps: int = 3000  # all arms are done learning by then
    num_envs: int = 10  # side by side; each decision makes as many rounds of updates
    warmup_decisions: int = 20
    critic_updates: int = 5  # per round, that is per env step
    batch_size: int = 64
    demonstration_fraction: float = 0.5  # of every batch
    num_evaluations: int = 30  # evenly over the run
    evaluation_episodes: int = 32

    def __post_init__(self):
        if self.env_steps % (self.num_envs * self.num_evaluations):
            raise errors.ConfigError(
                "Experiment.env_steps", expected="a multiple of num_envs * num_evaluations", found=self.env_steps
            )


def study() -> Experiment:
    """Half a minute per seed and arm; networks of two layers of 64, 5 levels of noise, 5 critics."""
    return Experiment(
        learner=EXPOConfig(
            execution_horizon=1,
            base="imitation",
            edit_scale=0.2,
            num_critics=5,
            hidden_dims=(64, 64),
            discount=0.95,
            target_update_rate=0.01,
            initial_temperature=0.01,
            value_range=(0.0, 1.0),  # the return is 1 at success, discounted
        ),
        decoder=DiffusionConfig(1, ACTION_DIM, NoiseSchedule(num_steps=5)),
        backbone=StateMLPConfig(STATE_DIM, 1, ACTION_DIM, hidden_dims=(64, 64), norm="none", activation="relu"),
        optimizer=Adam(peak_lr=1e-3),
        base_optimizer=AdamW(peak_lr=1e-3, weight_decay=1e-4),
    )


def long() -> Experiment:
    """Ten times as many steps: what becomes of a base that imitates what is collected."""
    return dataclasses.replace(study(), env_steps=30_000)


def fine() -> Experiment:
    """The choice is not enough: discs a quarter as wide, and time for two tries at them instead of ten."""
    return dataclasses.replace(study(), env=ReachConfig(radius=0.01, episode_length=8))


def fine_long() -> Experiment:
    """Ten times as many steps of it: whether every seed has its first hit, and what follows."""
    return dataclasses.replace(fine(), env_steps=long().env_steps)


def sharp() -> Experiment:
    """The edit is needed: discs of 0.02 of an action around what is 0.04 per entry beyond the demonstrations.

    The point is at a goal after one step and has two. What the base has learned spreads more than its demonstrations
    (0.05 of an action instead of 0.005), so that in many steps the choice would get there without edits.
    """
    full = study()
    return dataclasses.replace(
        full,
        learner=dataclasses.replace(full.learner, edit_scale=0.05),
        env=ReachConfig(radius=0.02, stride=1.0, episode_length=2),
        demonstrator=DemonstratorConfig(aim_range=(0.0, 0.0), shift=(0.04, 0.04), noise=0.005),
        imitation_updates=10_000,
    )


def sharp_in_small_strides() -> Experiment:
    """The second check as it does not work: the base spreads forty times as far as demonstrations, and has 16 steps."""
    return dataclasses.replace(sharp(), env=ReachConfig(radius=0.002), imitation_updates=study().imitation_updates)


def paper_study() -> Experiment:
    """The released sizes: 10 critics of three layers of 256, an edit of 0.05, 20 critic updates of 256 per step."""
    return Experiment(
        learner=EXPOConfig(execution_horizon=1, base="imitation", edit_scale=0.05),
        decoder=DiffusionConfig(1, ACTION_DIM, NoiseSchedule(num_steps=10, kind="vp")),
        backbone=StateMLPConfig(
            STATE_DIM, 1, ACTION_DIM, hidden_dims=(256,), activation="silu", residual_blocks=3, time_features=128
        ),
        env_steps=300_000,
        num_envs=1,
        warmup_decisions=5000,
        critic_updates=20,
        batch_size=256,
    )


# --- recipes --------------------------------------------------------------------------------------------------------


def imitation(seed: int = 0) -> Recipe:
    """The base of `quick`: a minute of one core."""
    return _imitation("study", study(), seed)


def quick(seed: int = 0) -> Recipe:
    """EXPO around it, 3,000 steps in ten environments: two minutes of one core."""
    return _online("study", study(), seed)


def paper_imitation(seed: int = 0) -> Recipe:
    return _imitation("paper", paper_study(), seed)


def paper(seed: int = 0) -> Recipe:
    return _online("paper", paper_study(), seed)


def generate(seed: int = 0) -> None:
    """Write the demonstrations that these learn from, a second."""
    of = study()
    scripted.generate(_data_path(seed), ReachData(of.env, of.demonstrator, of.num_demonstrations, seed))


def _data_path(seed: int) -> str:
    return f"{FOLDER}/seed{seed}/data/1.0.0"


def _imitation(name: str, experiment: Experiment, seed: int) -> Recipe:
    updates, dataset = experiment.imitation_updates, DatasetConfig(_data_path(seed), action_horizon=1, cameras=())
    normalization = NormalizationConfig(mode="none")  # both live in [-1, 1]
    return Recipe(
        name=f"expo_reach/{name}/imitation",
        policy=PolicyConfig(experiment.backbone, experiment.decoder),
        learner=ImitationConfig(),
        optimizer=experiment.base_optimizer,
        fit=FitConfig(updates, log_every=100, checkpoint_every=updates // 2, max_to_keep=1, seed=seed),
        evaluation=EvaluationConfig((experiment.env,), 1, num_episodes=128, batch_size=128),
        data=DataConfig((dataset,), batch_size=experiment.batch_size, normalization=normalization, seed=seed),
    )


def _online(name: str, experiment: Experiment, seed: int) -> Recipe:
    base, steps = _imitation(name, experiment, seed), experiment.env_steps // experiment.num_envs
    recorded = dataclasses.replace(base.data.datasets[0], transitions=TransitionConfig())
    every = steps // experiment.num_evaluations
    return dataclasses.replace(
        base,
        name=f"expo_reach/{name}/expo",
        learner=experiment.learner,
        optimizer=experiment.optimizer,
        base_optimizer=experiment.base_optimizer,
        fit=FitConfig(steps, log_every=every, eval_every=every, checkpoint_every=steps // 2, max_to_keep=1, seed=seed),
        replay=ReplayConfig(
            num_envs=experiment.num_envs,
            capacity=experiment.env_steps + experiment.num_envs * experiment.warmup_decisions,
            warmup_decisions=experiment.warmup_decisions,
            rounds=experiment.num_envs,
            critic_updates=experiment.critic_updates,
            batch_size=experiment.batch_size,
            seed=seed,
        ),
        recorded=RecordedConfig(recorded, experiment.demonstration_fraction),
        start_from=f"{FOLDER}/seed{seed}/{name}_imitation",
    )
