"""Pick up a cube: SERL's simulated task (`franka_sim`, PandaPickCube), in this suite's scenes.

From there: the four-dimensional action (displacement of the fingertips' target in units of 0.1 m, and how much further
to close the grip), the reward `0.3 exp(-20 distance) + 0.7 lift`, the ten state entries, where cubes lie, the
workspace, the cube (4 cm, 100 g) and the limit of 10 s. Positions are metres in the frame of the arm's base. Unlike
there, the control rate is the suite's 20 Hz instead of 50; the arm is driven by its joints' servos instead of
operational-space torques; the fingers are the suite's. `reward="sparse"` is what SERL gives its real robots: 1 at
success, which ends the episode. `arm="slides"` puts the suite's gripper on slides in place of the arm, for machines
where the arm is too slow.
"""

import abc
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from mujoco import mjx

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.base import Env, EnvState
from vla_jax.envs.mjx import impedance, panda, tabletop
from vla_jax.envs.mjx import scene as scenes
from vla_jax.envs.mjx.tasks import Goal, Task, View
from vla_jax.envs.relative_frame import FrameLayout, RelativeFrame

ACTION_NAMES = ("dx", "dy", "dz", "grip")
STATE_NAMES = ("x", "y", "z", "vx", "vy", "vz", "gripper", "block_x", "block_y", "block_z")
LAYOUT = FrameLayout(position=(0, 1, 2), velocity=(3, 4, 5), points=((7, 8, 9),))
BASE = (0.5, 0.0, 0.0)  # metres, of the table's frame in that of the arm's base
WORKSPACE_LOW, WORKSPACE_HIGH = (0.2, -0.3, 0.012), (0.6, 0.3, 0.5)  # metres; above the table by a fingertip's radius
_BLOCK = scenes.Block("purple", half_size=0.02, mass=0.1)
_LIMITS = {"slides": (0.05, 0.05, 0.05, 0.3), "panda": (0.2,) * 7}  # how far servos see ahead: metres, radians


@dataclasses.dataclass(frozen=True)
class PickCubeConfig:
    """Defaults: those of `franka_sim`."""

    arm: Literal["panda", "slides"] = "panda"
    reward: Literal["dense", "sparse"] = "dense"
    frame: Literal["base", "tool"] = "base"  # of what is seen and done; tool: `envs/relative_frame.py`
    lift_height: float = 0.2  # metres above the table's top where the cube counts as lifted
    action_scale: float = 0.1  # metres per control step
    block_low: tuple[float, float] = (0.25, -0.25)  # metres, where cubes lie
    block_high: tuple[float, float] = (0.55, 0.25)
    start: tuple[float, float, float] = (0.4, 0.0, 0.2)  # metres, of the fingertips
    start_noise: float = 0.0  # metres, either way
    image_size: int = 64
    episode_length: int = 200  # control steps: 10 s
    randomization: tabletop.Randomization = tabletop.Randomization()

    def __post_init__(self):
        if self.arm not in _LIMITS:
            raise errors.ConfigError("PickCubeConfig.arm", expected=tuple(_LIMITS), found=self.arm)
        if self.frame not in ("base", "tool"):
            raise errors.ConfigError("PickCubeConfig.frame", expected="base or tool", found=self.frame)
        if min(self.lift_height, self.action_scale) <= 0 or self.episode_length < 1:
            raise errors.ConfigError("PickCubeConfig", expected="positive heights, scales and lengths", found=self)
        for low, high in zip(self.block_low, self.block_high, strict=True):
            if low > high:
                raise errors.ConfigError(
                    "PickCubeConfig.block_low", expected=f"below {self.block_high}", found=self.block_low
                )

    @property
    def task(self) -> str:
        return "pick_cube"

    @property
    def instructions(self) -> tuple[str, ...]:
        return ("pick up the cube",)

    def make(self, prompts: PromptTable) -> Env:
        env = (PandaPickCube if self.arm == "panda" else SlidesPickCube)(self, prompts)
        return RelativeFrame(env, LAYOUT) if self.frame == "tool" else env


def _task(config: PickCubeConfig) -> Task:
    at_rest = _BLOCK.half_size
    return Task(
        name=config.task,
        scene=scenes.Scene((_BLOCK,)),
        goals=(Goal(config.instructions[0], 0),),
        success=lambda view: _lifted(view, config.lift_height) >= 1,
        distance=lambda view: jnp.maximum(config.lift_height - (view.object[2] - at_rest), 0.0),
        episode_length=config.episode_length,
    )


def _lifted(view: View, lift_height: float) -> Float[Array, ""]:
    return jnp.clip((view.object[2] - _BLOCK.half_size) / lift_height, 0, 1)


def reward_terms(view: View, lift_height: float) -> dict[str, Float[Array, ""]]:
    """`near` in [0, 1] falls with the distance from fingertips to cube, `lift` is the share of the height reached."""
    return {
        "near": jnp.exp(-20 * jnp.linalg.norm(view.object - view.hand)),
        "lift": _lifted(view, lift_height),
    }


class PickCube(tabletop.TabletopEnv, abc.ABC):
    """What both robots share. `physics.grip` is continuous: 0 open, 1 closed."""

    action_names = ACTION_NAMES
    state_names = STATE_NAMES
    config: PickCubeConfig

    def __init__(self, config: PickCubeConfig, prompts: PromptTable):
        tabletop.TabletopEnv.__init__(self, config, prompts, task=_task(config), suite=config.arm)
        self._limit = jnp.array(_LIMITS[config.arm])

    def reset(self, key: Key[Array, ""]) -> EnvState:
        state = super().reset(key)
        place_key, start_key = jax.random.split(jax.random.fold_in(key, 1))
        low, high = jnp.array(self.config.block_low), jnp.array(self.config.block_high)
        place = jax.random.uniform(place_key, (2,), minval=low, maxval=high) - jnp.array(BASE[:2])
        noise = self.config.start_noise * jax.random.uniform(start_key, (3,), minval=-1.0)
        hand = jnp.append(jnp.array(self.config.start) - jnp.array(BASE) + noise, 0.0)
        joints, target = self._robot_at(hand)
        level = jnp.array([1.0, 0, 0, 0])  # square to the table: this task has no turn in its actions
        block = jnp.concatenate([place, jnp.array([_BLOCK.half_size]), level])
        qpos = jnp.concatenate([block, joints, jnp.full(2, scenes.FINGER_OPEN)])
        state = state.replace(physics=state.physics.replace(qpos=qpos, target=target))
        return state.replace(info=self._info(self.view(state)))

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        """One control step of 0.05 s."""
        stepped = super().step(state, action)
        if self.config.reward == "sparse":
            return stepped
        reward = jnp.where(state.done, 0.0, 0.3 * stepped.info["near"] + 0.7 * stepped.info["lift"])
        done = state.done | (stepped.env_step >= self.spec.episode_length)  # there only the time ends an episode
        success = state.success | stepped.success  # at any time: it need not be held to the end
        return stepped.replace(reward=reward, discount=jnp.ones(()), done=done, success=success)

    def _info(self, view: View) -> dict[str, Array]:
        info = super()._info(view)
        return info if self.config.reward == "sparse" else info | reward_terms(view, self.config.lift_height)

    def _robot_state(self, state: EnvState) -> Float[Array, "s"]:
        view, base = self.view(state), jnp.array(BASE)
        velocity = self._hand_velocity(state.physics)
        return jnp.concatenate([view.hand + base, velocity, view.grip[None], view.object + base])

    @abc.abstractmethod
    def _hand_velocity(self, physics: tabletop.TablePhysics) -> Float[Array, "3"]:
        """In metres per second, in the frame of the world."""

    def _move(self, position: Float[Array, "3"], action: Float[Array, "a"]) -> Float[Array, "3"]:
        low, high = (jnp.array(bound) - jnp.array(BASE) for bound in (WORKSPACE_LOW, WORKSPACE_HIGH))
        return jnp.clip(position + self.config.action_scale * action[:3], low, high)

    def _drive(self, physics: tabletop.TablePhysics, action: Float[Array, "a"]) -> tabletop.TablePhysics:
        joints = physics.qpos[7:-2]
        target, goal = self._aim(joints, physics.target, action)
        grip = jnp.clip(physics.grip + action[-1], 0, 1)
        width = (1 - grip) * jnp.full(2, scenes.FINGER_OPEN)
        model = self._randomized_model(physics.variation)

        def substep(_, data):
            near = impedance.bounded_target(data.qpos[7:-2], goal, self._limit)
            return mjx.step(model, data.replace(ctrl=jnp.concatenate([near, width])))

        data = self.model.initial.replace(qpos=physics.qpos, qvel=physics.qvel)
        with jax.numpy_rank_promotion("allow"):  # MJX broadcasts vectors against matrices throughout
            data = jax.lax.fori_loop(0, scenes.SUBSTEPS, substep, data)
        return physics.replace(qpos=data.qpos, qvel=data.qvel, target=target, grip=grip)


class SlidesPickCube(PickCube):
    def _hand_velocity(self, physics):
        return physics.qvel[6:9]

    def _aim(self, joints, target, action):
        target = jnp.append(self._move(target[:3], action), 0.0)
        return target, target


class PandaPickCube(PickCube, panda.PandaEnv):
    def _hand_velocity(self, physics):
        jacobian = panda.forward(physics.qpos[7:14])[2]
        return jacobian[:3] @ physics.qvel[6:13]

    def _aim(self, joints, target, action):
        tips = panda.forward(joints)[0]
        position = jnp.clip(self._move(target[:3], action), tips - panda.LEASH, tips + panda.LEASH)
        return self._reach(target, position, target[3:12].reshape(3, 3))
