"""SERL's learner on its simulated task, pick-cube (arXiv 2401.16013, `franka_sim`).

    python -c "from recipes import serl_pick_cube as task; task.generate(task.quick())"
    vla-jax train recipes/serl_pick_cube.py --run runs/serl/seed0/rlpd
    python scripts/reproduce_serl.py --seeds 0 1 2         # demonstrations, all arms, and their table

`quick` is the small reproduction: state level, gripper on slides, sparse reward, 6,400 steps, small networks, a
minute or two of one CPU core. `hil_serl` gives the grip to a DQN of its own (arXiv 2410.21845), and `pixels` sees the
cube in the wrist's camera alone. `paper` has the released values of the state-level run in simulation: 256 units,
batches of 256, a million steps, the arm, the dense reward. It was not run here.
"""

import dataclasses

from data_pipelines import scripted
from data_pipelines.scripted import PickCubeData
from vla_jax.data.normalization import NormalizationConfig
from vla_jax.data.schema import DatasetConfig, TransitionConfig
from vla_jax.envs.mjx.pick_cube import ACTION_NAMES, STATE_NAMES, PickCubeConfig
from vla_jax.learners.hil_serl import GraspConfig, HilSerlConfig
from vla_jax.learners.rlpd import RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.pixels import PixelConfig
from vla_jax.nets.state_mlp import StateMLPConfig
from vla_jax.policies.gaussian import GaussianConfig
from vla_jax.training.fit import FitConfig
from vla_jax.training.online import ReplayConfig
from vla_jax.training.optimizers import Adam
from vla_jax.training.recipe import DataConfig, EvaluationConfig, PolicyConfig, Recipe
from vla_jax.training.recorded import RecordedConfig

FOLDER = "runs/serl"
STATE_DIM, ACTION_DIM = len(STATE_NAMES), len(ACTION_NAMES)
BLOCK_DIMS = (7, 8, 9)  # of the state, which pictures have to tell
NUM_ENVS = 8

SLIDES = PickCubeConfig(arm="slides", reward="sparse", lift_height=0.1, action_scale=0.05, episode_length=60)
# Cubes at x in [0.3, 0.4], and the same with everything, the start too, moved to x in [0.45, 0.5].
STRIP = dataclasses.replace(SLIDES, block_low=(0.3, -0.2), block_high=(0.4, 0.2), start=(0.35, 0.0, 0.2))
SHIFTED = dataclasses.replace(STRIP, block_low=(0.45, -0.2), block_high=(0.5, 0.2), start=(0.475, 0.0, 0.2))
SMALL = RLPDConfig(critic=CriticConfig((64, 64), activation="tanh"), actor_dims=(64, 64))


def generate(recipe: Recipe) -> None:
    """Write the 20 episodes that a recipe learns from, in its environment; its seed is theirs."""
    (env,), (dataset,) = recipe.evaluation.envs, recipe.data.datasets
    scripted.generate(dataset.path, PickCubeData(env, cameras=bool(dataset.cameras), seed=recipe.data.seed))


def quick(seed: int = 0) -> Recipe:
    """RLPD: every batch is half demonstrations."""
    return _recipe("rlpd", SLIDES, SMALL, seed)


def without_norm(seed: int = 0) -> Recipe:
    """The critics without LayerNorm."""
    critic = dataclasses.replace(SMALL.critic, norm="none")
    return _recipe("rlpd_without_norm", SLIDES, dataclasses.replace(SMALL, critic=critic), seed)


def prefilled(seed: int = 0) -> Recipe:
    """SAC whose buffer has the demonstrations: each of their steps counts as any other."""
    recipe = _recipe("sac_prefilled", SLIDES, SMALL, seed)
    return dataclasses.replace(recipe, recorded=dataclasses.replace(recipe.recorded, fraction=None))


def from_scratch(seed: int = 0) -> Recipe:
    """SAC alone; demonstrations only say how states are normalized."""
    return dataclasses.replace(_recipe("sac", SLIDES, SMALL, seed), recorded=None)


def absolute_frame(seed: int = 0) -> Recipe:
    """In a strip, to be judged beside it as well (`shifted`)."""
    return _recipe("absolute_frame", STRIP, SMALL, seed)


def relative_frame(seed: int = 0) -> Recipe:
    """As `absolute_frame`, seen and moved in the frame of the tool."""
    return _recipe("relative_frame", dataclasses.replace(STRIP, frame="tool"), SMALL, seed)


def shifted(recipe: Recipe) -> EvaluationConfig:
    """The same judgement 12 cm away."""
    (env,) = recipe.evaluation.envs
    return dataclasses.replace(recipe.evaluation, envs=(dataclasses.replace(SHIFTED, frame=env.frame),))


def hil_serl(seed: int = 0, epsilon: float = 0.1) -> Recipe:
    """As `quick`, with the grip left to its own critic; a tenth of its commands is random, as no operator corrects."""
    grasp = GraspConfig(hidden_dims=(64, 64), discount=SMALL.discount, epsilon=epsilon)
    return _recipe("hil_serl", SLIDES, HilSerlConfig(SMALL, grasp), seed)


def hil_serl_greedy(seed: int = 0) -> Recipe:
    """As `hil_serl`, with the best command always, as released; what is new comes from the arm's exploration."""
    return dataclasses.replace(hil_serl(seed, epsilon=0.0), name="serl_pick_cube/hil_serl_greedy")


def pixels(seed: int = 0) -> Recipe:
    """As `quick`, but the cube is seen, not told: 32 x 32 pixels at the wrist, trunk trained, half as many updates."""
    sees = PixelConfig(
        ("wrist",), (32, 32), STATE_DIM, filters=8, stages=(1, 1), spatial_features=4, bottleneck=64, state_features=32
    )
    learner = dataclasses.replace(SMALL, frozen_trunk=False, crop_pad=2)
    recipe = _recipe("pixels", dataclasses.replace(SLIDES, image_size=32), learner, seed, sees)
    hidden = dataclasses.replace(recipe.data.normalization, hidden_state_dims=BLOCK_DIMS)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, normalization=hidden),
        replay=dataclasses.replace(recipe.replay, rounds=4),
    )


def paper(seed: int = 0) -> Recipe:
    """The released values: one environment, four critic updates and one of the actor per step."""
    recipe = _recipe("paper", PickCubeConfig(), RLPDConfig(discount=0.99), seed)
    steps = 1_000_000
    return dataclasses.replace(
        recipe,
        fit=dataclasses.replace(recipe.fit, num_train_steps=steps, eval_every=10_000, checkpoint_every=10_000),
        replay=dataclasses.replace(
            recipe.replay, num_envs=1, capacity=steps, warmup_decisions=300, rounds=1, batch_size=256
        ),
    )


ARMS = {
    "rlpd": quick,
    "sac": from_scratch,
    "sac_prefilled": prefilled,
    "rlpd_without_norm": without_norm,
    "absolute_frame": absolute_frame,
    "relative_frame": relative_frame,
    "hil_serl": hil_serl,
    "hil_serl_greedy": hil_serl_greedy,
    "pixels": pixels,
}


def _recipe(
    name: str,
    env: PickCubeConfig,
    learner: RLPDConfig | HilSerlConfig,
    seed: int,
    sees: StateMLPConfig | PixelConfig | None = None,
) -> Recipe:
    """One decision in each of eight environments, then eight rounds of four critic updates and one of the actor."""
    sees = sees or StateMLPConfig(STATE_DIM, 1, ACTION_DIM)
    place = "strip" if env.block_low == STRIP.block_low else "base"
    variant = f"{place}_{env.arm}_{env.frame}" + ("_pictures" if sees.cameras else "")
    dataset = DatasetConfig(
        f"{FOLDER}/seed{seed}/{variant}/1.0.0", 1, cameras=tuple((camera, camera) for camera in sees.cameras)
    )
    recorded = dataclasses.replace(dataset, transitions=TransitionConfig())
    # states by the demonstrations' mean and deviation, actions as they are
    normalization = NormalizationConfig("z_score", raw_action_dims=tuple(range(ACTION_DIM)))
    return Recipe(
        name=f"serl_pick_cube/{name}",
        policy=PolicyConfig(sees, GaussianConfig(1, ACTION_DIM)),
        learner=learner,
        optimizer=Adam(peak_lr=3e-4),
        fit=FitConfig(800, log_every=50, eval_every=100, checkpoint_every=400, max_to_keep=1, seed=seed),
        evaluation=EvaluationConfig((env,), 1, num_episodes=100, batch_size=100),
        data=DataConfig((dataset,), batch_size=1, normalization=normalization, seed=seed),
        replay=ReplayConfig(NUM_ENVS, 6400, warmup_decisions=1, rounds=8, critic_updates=4, batch_size=64, seed=seed),
        recorded=RecordedConfig(recorded, 0.5),
    )
