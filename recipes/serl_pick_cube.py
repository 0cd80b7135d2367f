"""SERL's learner on its simulated task, pick-cube (arXiv 2401.16013, `franka_sim`); scripts/reproduce_serl.py runs it.

`quick()` is the small reproduction: state level, gripper on slides, sparse reward, 6,400 steps, small networks, a
minute of one CPU core. `hil_serl()` gives the grip to a DQN of its own (arXiv 2410.21845), and `pixels()` sees the cube
in the wrist's camera alone. `paper()` has the released values of the state-level run in simulation: 256 units, batches
of 256, a million steps, the arm, the dense reward. It was not run here.
"""

import dataclasses
from typing import Literal

import optax
from jaxtyping import Array, Float

from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import Env
from vla_jax.envs.mjx.pick_cube import PickCubeConfig
from vla_jax.envs.relative_frame import FrameLayout, RelativeFrame
from vla_jax.learners.hil_serl import GraspConfig, HilSerl
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.pixels import PixelConfig, PixelEncoder

ROBOT_DIMS = 7  # of the state come first; the rest says where the cube is
LAYOUT = FrameLayout(position=(0, 1, 2), velocity=(3, 4, 5), points=((7, 8, 9),))


@dataclasses.dataclass(frozen=True)
class PickCubeRecipe:
    env: PickCubeConfig
    config: RLPDConfig
    shifted_env: PickCubeConfig | None = None  # judged in besides
    relative_frame: bool = False
    grasp: GraspConfig | None = None  # the grip has a critic of its own
    pixels: PixelConfig | None = None  # what is seen of the cube; None: its position
    demonstrations: Literal["none", "prefill", "half"] = "half"  # prefill: in the online buffer at the start
    num_demonstrations: int = 20  # episodes
    jitter: float = 0.3  # up to this standard deviation on every scripted action, drawn per episode
    learning_rate: float = 3e-4
    env_steps: int = 6400
    num_envs: int = 8
    rounds: int = 8  # per decision of all environments: `rounds * critic_updates / num_envs` is the update ratio
    critic_updates: int = 4  # per round: critic-to-actor ratio
    batch_size: int = 64
    eval_every: int = 800  # steps
    eval_episodes: int = 100

    def learner(self, action_dim: int, state_dim: int) -> RLPD | HilSerl:
        optimizer, encoder = optax.adam(self.learning_rate), None
        feature_dim = state_dim if self.pixels is None else self.pixels.feature_dim
        if self.pixels is not None:
            encoder = lambda rngs: PixelEncoder(self.pixels, rngs)  # noqa: E731
        if self.grasp is None:
            return RLPD(action_dim, feature_dim, optimizer, self.config, encoder)
        arm = RLPD(action_dim - 1, feature_dim, optimizer, self.config, encoder)
        return HilSerl(arm, feature_dim, optimizer, self.grasp)

    def sees(self, observation: Observation) -> Observation | Float[Array, "*b s"]:
        """What the learner is shown: the state, or pictures and the robot's own part of the state."""
        if self.pixels is None:
            return observation.state
        chosen = {name: observation.images[name] for name in self.pixels.cameras}
        masks = {name: observation.image_mask[name] for name in self.pixels.cameras}
        return observation.replace(images=chosen, image_mask=masks, state=observation.state[..., :ROBOT_DIMS])

    def make(self, config: PickCubeConfig, prompts: PromptTable) -> Env:
        env = config.make(prompts)
        return RelativeFrame(env, LAYOUT) if self.relative_frame else env


SLIDES = PickCubeConfig(arm="slides", reward="sparse", lift_height=0.1, action_scale=0.05, episode_length=60)
SMALL = RLPDConfig(critic=CriticConfig((64, 64), activation="tanh"), actor_dims=(64, 64))


def quick() -> PickCubeRecipe:
    return PickCubeRecipe(SLIDES, SMALL)


def without_norm() -> PickCubeRecipe:
    critic = dataclasses.replace(SMALL.critic, norm="none")
    return PickCubeRecipe(SLIDES, dataclasses.replace(SMALL, critic=critic))


def prefilled() -> PickCubeRecipe:
    return dataclasses.replace(quick(), demonstrations="prefill")


def from_scratch() -> PickCubeRecipe:
    return dataclasses.replace(quick(), demonstrations="none")


def absolute_frame() -> PickCubeRecipe:
    """Cubes at x in [0.3, 0.4]; judged besides with everything, the start too, moved to x in [0.45, 0.5]."""
    trained = dataclasses.replace(SLIDES, block_low=(0.3, -0.2), block_high=(0.4, 0.2), start=(0.35, 0.0, 0.2))
    shifted = dataclasses.replace(trained, block_low=(0.45, -0.2), block_high=(0.5, 0.2), start=(0.475, 0.0, 0.2))
    return PickCubeRecipe(trained, SMALL, shifted)


def relative_frame() -> PickCubeRecipe:
    return dataclasses.replace(absolute_frame(), relative_frame=True)


def hil_serl() -> PickCubeRecipe:
    """As `quick`, with the grip left to its own critic; a tenth of its commands is random, as no operator corrects."""
    return dataclasses.replace(quick(), grasp=GraspConfig(hidden_dims=(64, 64), discount=SMALL.discount, epsilon=0.1))


def hil_serl_greedy() -> PickCubeRecipe:
    """As `hil_serl`, with the best command always, as released; what is new comes from the arm's exploration."""
    recipe = hil_serl()
    return dataclasses.replace(recipe, grasp=dataclasses.replace(recipe.grasp, epsilon=0.0))


def pixels() -> PickCubeRecipe:
    """As `quick`, but the cube is seen, not told: 32 x 32 pixels at the wrist, trunk trained, half as many updates."""
    seen = PixelConfig(
        ("wrist",), (32, 32), ROBOT_DIMS, filters=8, stages=(1, 1), spatial_features=4, bottleneck=64, state_features=32
    )
    config = dataclasses.replace(SMALL, frozen_trunk=False, crop_pad=2)
    return PickCubeRecipe(dataclasses.replace(SLIDES, image_size=32), config, pixels=seen, rounds=4)


def paper() -> PickCubeRecipe:
    config = RLPDConfig(discount=0.99)
    return PickCubeRecipe(PickCubeConfig(), config, env_steps=1_000_000, num_envs=1, rounds=1, batch_size=256)


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
