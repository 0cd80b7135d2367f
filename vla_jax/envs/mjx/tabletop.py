"""Language-conditioned manipulation on a table, in MJX: `place`, `lift`, `push`, `stack` and `bin`.

The robot is a parallel gripper driven in position at 20 Hz. An action has five entries in [-1, 1]: displacement of the
hand's target along x, y and z in units of 0.02 m, its turn about z in units of 0.1 rad, and the grip (above 0 closes).
The reward is 1 at the step the task succeeds, which ends the episode with discount 0.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key
from mujoco import mjx

from vla_jax.core import errors
from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import EnvSpec, EnvState
from vla_jax.envs.mjx import scene as scenes
from vla_jax.envs.mjx.renderer import Light, RayRenderer, Rendering, default_light
from vla_jax.envs.mjx.tasks import TASKS, Task, View, spread_out

ACTION_NAMES = ("dx", "dy", "dz", "dyaw", "grip")
STATE_NAMES = (
    *("x", "y", "z", "yaw_sin", "yaw_cos", "finger_left", "finger_right"),
    *("target_dx", "target_dy", "target_dz", "target_dyaw", "grip_command"),  # how far the hand lags its target
)
# The last action shows in these, and a policy that may copy it does: see NormalizationConfig.hidden_state_dims.
LAG_DIMS = tuple(i for i, name in enumerate(STATE_NAMES) if name.startswith("target_"))
TRANSLATION_STEP = 0.02  # metres per control step at action 1
YAW_STEP = 0.1  # radians per control step at action 1
WORKSPACE_LOW, WORKSPACE_HIGH = (-0.2, -0.2, 0.012, -1.8), (0.2, 0.2, 0.2, 1.8)
_LEASH = (0.06, 0.06, 0.06, 0.3)  # how far the target may run ahead of the hand


@dataclasses.dataclass(frozen=True)
class Randomization:
    """Half-widths of what differs between episodes besides the task itself; 0 leaves it fixed."""

    color: float = 0.0  # relative, per geom and channel
    light: float = 0.0  # of the light's direction (radians, roughly) and relative strength
    friction: float = 0.0  # in log units: 0.3 is a factor of up to 1.35 either way
    mass: float = 0.0  # of objects, in log units
    camera: float = 0.0  # metres, of the fixed cameras

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise errors.ConfigError(
                    f"Randomization.{field.name}", expected=">= 0", found=getattr(self, field.name)
                )

    @property
    def changes_physics(self) -> bool:
        return self.friction > 0 or self.mass > 0


@dataclasses.dataclass(frozen=True)
class TabletopConfig:
    """Which task, seen how. `episode_length` None takes the task's own."""

    task: str = "place"
    image_size: int = 64  # pixels, height and width
    episode_length: int | None = None  # control steps
    randomization: Randomization = Randomization()

    def __post_init__(self):
        TASKS[self.task]  # raises for an unknown one
        if self.image_size < 8:
            raise errors.ConfigError("TabletopConfig.image_size", expected=">= 8 pixels", found=self.image_size)
        if self.episode_length is not None and self.episode_length < 1:
            raise errors.ConfigError("TabletopConfig.episode_length", expected=">= 1", found=self.episode_length)

    @property
    def instructions(self) -> tuple[str, ...]:
        """For the tokenizer that makes the PromptTable, without building the environment."""
        return tuple(goal.instruction for goal in TASKS[self.task].goals)

    def make(self, prompts: PromptTable) -> "TabletopEnv":
        return TabletopEnv(self, prompts)


class Variation(struct.PyTreeNode):
    """What this episode's randomization drew; edit it to set a condition by hand."""

    color_scale: Float[Array, "g 3"]
    light: Light
    camera_offset: Float[Array, "c 3"]  # metres, world frame; zero for cameras on the hand
    friction_scale: Float[Array, ""]  # read only if Randomization.changes_physics
    mass_scale: Float[Array, ""]  # likewise


class TablePhysics(struct.PyTreeNode):
    """The simulator's state: `EnvState.physics` of this suite."""

    qpos: Float[Array, "q"]
    qvel: Float[Array, "v"]
    target: Float[Array, "t"]  # of the gripper: x, y, z in metres and yaw in radians the hand is driven to
    grip: Float[Array, ""]  # 1 closed, 0 open
    fixtures: Float[Array, "p 2"]  # metres
    variation: Variation


@functools.lru_cache(maxsize=16)
def _compiled(scene: scenes.Scene, robot: scenes.Robot) -> scenes.SceneModel:
    return scenes.compile_scene(scene, robot)


class TabletopEnv:
    """One task of the suite as pure functions of one environment; see `envs/base.py` for the contract.

    Cameras `front` (fixed) and `wrist` (turns with the hand). `state` is the robot's own: see STATE_NAMES; metres,
    radians, and `grip_command` 0 or 1. `env_state` gives what a critic or a debugger may see besides.
    """

    action_names: tuple[str, ...] = ACTION_NAMES
    state_names: tuple[str, ...] = STATE_NAMES
    robot = scenes.GRIPPER

    def __init__(self, config: TabletopConfig, prompts: PromptTable, task: Task | None = None, suite: str = "tabletop"):
        """`task` and `suite` are for other robots; here the config names the task."""
        if prompts.tokens.shape[0] != len(config.instructions):
            raise errors.ConfigError(
                f"prompts of {suite}/{config.task}",
                expected=f"{len(config.instructions)} rows, one per config.instructions",
                found=f"{prompts.tokens.shape[0]} rows",
            )
        self.config, self.prompts = config, jax.tree.map(jnp.asarray, prompts)
        self.task: Task = task or TASKS[config.task]
        self.model = _compiled(self.task.scene, self.robot)
        self._renderers = make_renderers(self.model, self.task.scene, config.image_size)
        self._goal_object = jnp.array([goal.object for goal in self.task.goals])
        self._goal_target = jnp.array([goal.target for goal in self.task.goals])
        self.spec = EnvSpec(
            name=f"{suite}/{config.task}",
            instructions=config.instructions,
            action_names=self.action_names,
            state_names=self.state_names,
            cameras={name: (config.image_size, config.image_size) for name in self._renderers},
            episode_length=config.episode_length or self.task.episode_length,
            control_hz=scenes.CONTROL_HZ,
        )

    def reset(self, key: Key[Array, ""]) -> EnvState:
        """A fresh episode: instruction, poses of objects and fixtures, hand, randomization."""
        place_key, yaw_key, hand_key, goal_key, variation_key, key = jax.random.split(key, 6)
        num_objects = len(self.task.scene.objects)
        places = spread_out(place_key, num_objects + len(self.task.scene.fixtures), self.task.spacing, self.task.spread)
        yaw = jax.random.uniform(yaw_key, (num_objects,), minval=-0.35, maxval=0.35)
        objects = [
            jnp.concatenate([places[i], jnp.array([item.height]), _yaw_quaternion(yaw[i])])
            for i, item in enumerate(self.task.scene.objects)
        ]
        hand = jax.random.uniform(
            hand_key, (4,), minval=jnp.array([-0.06, -0.06, 0.11, -0.2]), maxval=jnp.array([0.06, 0.06, 0.15, 0.2])
        )
        joints, target = self._robot_at(hand)
        physics = TablePhysics(
            qpos=jnp.concatenate([*objects, joints, jnp.full(2, scenes.FINGER_OPEN)]),
            qvel=jnp.zeros(self.model.physics.nv),
            target=target,
            grip=jnp.zeros(()),
            fixtures=places[num_objects:],
            variation=self._draw_variation(variation_key),
        )
        state = EnvState(
            physics=physics,
            key=key,
            env_step=jnp.zeros((), jnp.int32),
            instruction=jax.random.randint(goal_key, (), 0, len(self.task.goals)),
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            done=jnp.zeros((), bool),
            success=jnp.zeros((), bool),
            info={},
        )
        return state.replace(info=self._info(self.view(state)))

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        """One control step of 0.05 s; see the module for the action."""
        stepped = state.replace(physics=self._drive(state.physics, jnp.clip(action, -1, 1)))
        view = self.view(stepped)
        success = self.task.success(view)
        env_step = state.env_step + 1
        stepped = stepped.replace(
            env_step=env_step,
            reward=success.astype(jnp.float32),
            discount=1 - success.astype(jnp.float32),
            done=success | (env_step >= self.spec.episode_length),
            success=success,
            info=self._info(view),
        )
        frozen = state.replace(reward=jnp.zeros(()))
        return jax.tree.map(functools.partial(jnp.where, state.done), frozen, stepped)

    def observe(self, state: EnvState) -> Observation:
        """Renders both cameras."""
        images = {name: rendering.rgb for name, rendering in self.render(state).items()}
        return Observation(
            images=images,
            image_mask={name: jnp.ones((), bool) for name in images},
            state=self._robot_state(state),
            prompt=self.prompts.tokens[state.instruction],
            prompt_mask=self.prompts.mask[state.instruction],
        )

    def render(self, state: EnvState) -> Mapping[str, Rendering]:
        """RGB, depth and segmentation of every camera."""
        physics: TablePhysics = state.physics
        variation = physics.variation
        data = scenes.kinematics(self.model, physics.qpos, physics.fixtures)
        colors = jnp.clip(jnp.asarray(self.model.geoms.colors) * variation.color_scale, 0, 1)
        renderings = {}
        for i, (name, renderer) in enumerate(self._renderers.items()):
            position, rotation = camera_pose(self.model.geoms, i, data)
            renderings[name] = renderer(
                data.geom_xpos,
                data.geom_xmat,
                colors,
                position + variation.camera_offset[i],
                rotation,
                variation.light,
            )
        return renderings

    def view(self, state: EnvState) -> View:
        """The whole scene in metres and radians, for success tests and experts."""
        physics: TablePhysics = state.physics
        num_objects = len(self.task.scene.objects)
        objects, robot = physics.qpos[: 7 * num_objects].reshape(num_objects, 7), physics.qpos[7 * num_objects :]
        w, x, y, z = (objects[:, i] for i in range(3, 7))
        return View(
            objects=objects[:, :3],
            object_yaw=jnp.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)),
            fixtures=physics.fixtures,
            **self._robot_view(robot[:-2], physics.target),
            fingers=robot[-2:],
            grip=physics.grip,
            goal_object=self._goal_object[state.instruction],
            goal_target=self._goal_target[state.instruction],
        )

    def env_state(self, state: EnvState) -> Float[Array, "e"]:
        """Privileged simulator state for critics and debugging: robot, objects, fixtures, goal, share of time left."""
        view, physics = self.view(state), state.physics
        relative = view.objects - view.hand[None]
        num_goals = len(self.task.goals)
        return jnp.concatenate(
            [
                physics.qpos,
                physics.qvel,
                physics.target,
                view.grip[None],
                relative.ravel(),
                view.fixtures.ravel(),
                jax.nn.one_hot(state.instruction, num_goals),
                1 - state.env_step[None] / self.spec.episode_length,
            ]
        )

    def _robot_at(self, hand: Float[Array, "4"]) -> tuple[Float[Array, "j"], Float[Array, "t"]]:
        """Joints and drive target that put the hand at x, y, z, yaw."""
        return hand, hand

    def _robot_view(self, joints: Float[Array, "j"], target: Float[Array, "t"]) -> dict[str, Array]:
        """The robot's part of a View."""
        return {"hand": joints[:3], "yaw": joints[3], "target": target}

    def _robot_state(self, state: EnvState) -> Float[Array, "s"]:
        """What the policy may know of its own body; see STATE_NAMES."""
        view = self.view(state)
        lag = view.target - jnp.append(view.hand, view.yaw)
        facing = jnp.stack([jnp.sin(view.yaw), jnp.cos(view.yaw)])
        return jnp.concatenate([view.hand, facing, view.fingers, lag, view.grip[None]])

    def _aim(self, joints, target, action) -> tuple[Float[Array, "t"], Float[Array, "u"]]:
        """The next drive target and the arm's controls."""
        scale = jnp.array([TRANSLATION_STEP] * 3 + [YAW_STEP])
        target = jnp.clip(target + scale * action[:4], jnp.array(WORKSPACE_LOW), jnp.array(WORKSPACE_HIGH))
        target = jnp.clip(target, joints - jnp.array(_LEASH), joints + jnp.array(_LEASH))
        return target, target

    def _drive(self, physics: TablePhysics, action: Float[Array, "a"]) -> TablePhysics:
        joints = physics.qpos[7 * len(self.task.scene.objects) : -2]
        target, arm = self._aim(joints, physics.target, action)
        grip = (action[-1] > 0).astype(jnp.float32)
        width = (1 - grip) * jnp.full(2, scenes.FINGER_OPEN)
        model = self._randomized_model(physics.variation)
        data = self.model.initial.replace(qpos=physics.qpos, qvel=physics.qvel, ctrl=jnp.concatenate([arm, width]))
        if self.model.physics.nmocap:
            data = data.replace(mocap_pos=scenes.on_table(physics.fixtures))
        data = scenes.substeps(model, data, scenes.SUBSTEPS)
        return physics.replace(qpos=data.qpos, qvel=data.qvel, target=target, grip=grip)

    def _randomized_model(self, variation: Variation) -> mjx.Model:
        model = self.model.mjx_physics
        if not self.config.randomization.changes_physics:
            return model
        is_object = self.model.physics.body_dofnum == 6
        scale = jnp.where(is_object, variation.mass_scale, 1.0)
        sliding = model.geom_friction.at[:, 0].multiply(variation.friction_scale)
        return model.replace(
            geom_friction=sliding, body_mass=model.body_mass * scale, body_inertia=model.body_inertia * scale[:, None]
        )

    def _draw_variation(self, key: Key[Array, ""]) -> Variation:
        widths, geoms = self.config.randomization, self.model.geoms
        color_key, light_key, strength_key, camera_key, friction_key, mass_key = jax.random.split(key, 6)
        light = default_light()
        direction = light.direction + widths.light * jax.random.uniform(light_key, (3,), minval=-1.0)
        strength = 1 + widths.light * jax.random.uniform(strength_key, (2,), minval=-1.0)
        is_fixed = jnp.asarray(geoms.camera_bodies == 0)[:, None]
        cameras = jax.random.uniform(camera_key, (len(geoms.camera_bodies), 3), minval=-1.0)
        return Variation(
            color_scale=1 + widths.color * jax.random.uniform(color_key, (len(geoms.kinds), 3), minval=-1.0),
            light=Light(
                direction=direction / jnp.linalg.norm(direction),
                ambient=light.ambient * strength[0],
                diffuse=light.diffuse * strength[1],
            ),
            camera_offset=widths.camera * jnp.where(is_fixed, cameras, 0.0),
            friction_scale=jnp.exp(widths.friction * jax.random.uniform(friction_key, minval=-1.0)),
            mass_scale=jnp.exp(widths.mass * jax.random.uniform(mass_key, minval=-1.0)),
        )

    def _info(self, view: View) -> dict[str, Array]:
        return {
            "goal_distance": self.task.distance(view),
            "hand_distance": jnp.linalg.norm(view.object - view.hand),
        }


def make_renderers(model: scenes.SceneModel, scene: scenes.Scene, image_size: int) -> dict[str, RayRenderer]:
    """One renderer per camera, in the order of `model.geoms`."""
    geoms = model.geoms
    names = [model.visual.camera(i).name for i in range(model.visual.ncam)]
    return {
        name: RayRenderer(geoms.kinds, geoms.sizes, image_size, image_size, float(fovy))
        for name, fovy in zip(names, geoms.camera_fovy, strict=True)
    }


def camera_pose(geoms: scenes.GeomTable, index: int, data: mjx.Data) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
    """World position and rotation of a camera, given the poses of the bodies."""
    body = geoms.camera_bodies[index]
    position = data.xpos[body] + data.xmat[body] @ geoms.camera_positions[index]
    return position, data.xmat[body] @ geoms.camera_rotations[index]


def _yaw_quaternion(yaw: Float[Array, ""]) -> Float[Array, "4"]:
    zero = jnp.zeros_like(yaw)
    return jnp.stack([jnp.cos(yaw / 2), zero, zero, jnp.sin(yaw / 2)])
