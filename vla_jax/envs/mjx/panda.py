"""Pick and place with a 7-joint Franka Panda arm of primitive geometries, on the tabletop suite's table.

An action has seven entries in [-1, 1]: displacement of the fingertips' target along x, y, z in units of 0.02 m, its
rotation about the world's x, y, z in units of 0.1 rad, and the grip (above 0 closes). Damped least squares turns the
target into joint positions. End-effector deltas rather than joint deltas: they are the actions of LIBERO, Bridge and
DROID-trained policies, so one policy's action space fits both simulation and data.

Facts of the arm: kinematics, joint, velocity and torque limits from Franka Robotics' specification of the Panda
(control parameters, modified Denavit-Hartenberg); masses, centres and inertias as identified by Gaz et al., Dynamic
identification of the Franka Emika Panda robot with retrieval of feasible parameters (IEEE RA-L 2019); servo gains of
franka_ros' joint impedance example. Links are drawn as capsules and touch nothing: only table, fingertips and the
block collide.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.base import EnvState
from vla_jax.envs.mjx import scene as scenes
from vla_jax.envs.mjx import tabletop
from vla_jax.envs.mjx.tasks import TASKS, Goal, Task

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "grip")
STATE_NAMES = (
    *(f"joint{i}" for i in range(1, 8)),
    *("x", "y", "z"),
    *(f"rotation_{row}{column}" for column in "xy" for row in "xyz"),  # two columns of the fingertips' rotation
    *("finger_left", "finger_right", "grip_command"),
)
_BASE = (-0.5, 0.0, 0.0)  # metres, where the arm stands in the table's frame
LEASH = 0.06  # metres the target may run ahead of the fingertips
_ANGULAR_LEASH = 0.3  # radians
_DAMPING = 0.05  # of the least squares, metres or radians per radian
_HOME_PULL = 0.1  # share of the way to the home posture taken per solve within the null space
_SOLVES = 2  # per control step
_HOME = np.array([0.0, 0.1, 0.0, -2.2, 0.0, 2.3, 0.785])  # radians, fingers down over the table
_VELOCITY = np.array([2.175] * 4 + [2.61] * 3)  # radians per second
_DOWN = np.diag([1.0, -1.0, -1.0])  # the hand's frame when it points down: z of the flange is down


@dataclasses.dataclass(frozen=True)
class Link:
    """One moving link: pose in its parent's frame, joint and mass properties in its own."""

    position: tuple[float, float, float]
    quarter_turn: int  # about x, in units of 90 degrees
    low: float  # radians
    high: float
    torque: float  # newton metres
    stiffness: float  # of the position servo, newton metres per radian
    damping: float  # newton metre seconds per radian
    mass: float
    center: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]  # xx yy zz xy xz yz about the centre
    capsule: tuple[float, ...]  # from, to, radius: what is drawn


LINKS = (
    Link((0, 0, 0.333), 0, -2.8973, 2.8973, 87, 600, 50, 4.970684, (0.003875, 0.002081, -0.04762),
         (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169), (0, 0, -0.19, 0, 0, 0, 0.06)),
    Link((0, 0, 0), -1, -1.7628, 1.7628, 87, 600, 50, 0.646926, (-0.003141, -0.02872, 0.003495),
         (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704), (0, 0, 0, 0, -0.2, 0, 0.06)),
    Link((0, -0.316, 0), 1, -2.8973, 2.8973, 87, 600, 50, 3.228604, (0.027518, 0.039252, -0.066502),
         (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805), (0, 0, -0.12, 0.0825, 0, 0, 0.055)),
    Link((0.0825, 0, 0), 1, -3.0718, -0.0698, 87, 600, 50, 3.587895, (-0.05317, 0.104419, 0.027454),
         (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641), (0, 0, 0, -0.0825, 0.13, 0, 0.055)),
    Link((-0.0825, 0.384, 0), -1, -2.8973, 2.8973, 12, 250, 20, 1.225946, (-0.011953, 0.041065, -0.038437),
         (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229), (0, 0, -0.25, 0, 0, 0, 0.05)),
    Link((0, 0, 0), 1, -0.0175, 3.7525, 12, 150, 20, 1.666555, (0.060149, -0.014117, -0.010517),
         (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341), (0, 0, 0, 0.088, 0, 0, 0.05)),
    Link((0.088, 0, 0), 1, -2.8973, 2.8973, 12, 50, 10, 0.735522, (0.010517, -0.004252, 0.061597),
         (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741), (0, 0, 0.03, 0, 0, 0.08, 0.042)),
)  # fmt: skip
_FLANGE_TO_TIPS = 0.107 + 0.1034  # metres along the last joint's axis
_HAND_ANGLE = -np.pi / 4  # of the hand about the flange
_LOW, _HIGH = np.array([link.low for link in LINKS]), np.array([link.high for link in LINKS])

_TASK = Task(
    name="pick_place",
    scene=scenes.Scene((scenes.Block("red"),), (scenes.Zone("green"), scenes.Zone("yellow"))),
    goals=tuple(Goal(f"put the red block on the {zone} zone", 0, i) for i, zone in enumerate(("green", "yellow"))),
    success=TASKS["place"].success,
    distance=TASKS["place"].distance,
    episode_length=80,
    spacing=0.1,
)


@dataclasses.dataclass(frozen=True)
class PandaConfig:
    """As TabletopConfig; the only task puts a block on one of two zones."""

    task: str = "pick_place"
    image_size: int = 64  # pixels
    episode_length: int | None = None  # control steps
    randomization: tabletop.Randomization = tabletop.Randomization()

    def __post_init__(self):
        if self.task != _TASK.name:
            raise errors.ConfigError("PandaConfig.task", expected=_TASK.name, found=self.task)

    @property
    def instructions(self) -> tuple[str, ...]:
        return tuple(goal.instruction for goal in _TASK.goals)

    def make(self, prompts: PromptTable) -> "PandaEnv":
        return PandaEnv(self, prompts)


def _arm(mounted: str) -> str:
    """Nested bodies from the base to the frame between the fingertips."""
    x, y, z = _BASE
    opening, closing = f'<body name="base" pos="{x} {y} {z}">', "</body>"
    opening += '<geom type="capsule" fromto="0 0 .06 0 0 .2" size=".07" contype="0" conaffinity="0" mass="0"/>'
    for i, link in enumerate(LINKS, start=1):
        half = link.quarter_turn * np.pi / 4
        pose = f'pos="{scenes.numbers(link.position)}" quat="{np.cos(half)} {np.sin(half)} 0 0"'
        mass = f'pos="{scenes.numbers(link.center)}" mass="{link.mass}" fullinertia="{scenes.numbers(link.inertia)}"'
        *ends, radius = link.capsule
        shade = 0.92 if i % 2 else 0.8
        opening += f"""
        <body name="link{i}" gravcomp="1" {pose}>
          <inertial {mass}/>
          <joint name="joint{i}" axis="0 0 1" range="{link.low} {link.high}" armature=".1" damping="1"/>
          <geom type="capsule" fromto="{scenes.numbers(ends)}" size="{radius}" contype="0" conaffinity="0"
                rgba="{shade} {shade} {shade} 1"/>"""
        closing += "</body>"
    half = _HAND_ANGLE / 2
    # Inside `tips` z is up when the hand points down, so that fingers and wrist camera are those of the gripper.
    return f"""{opening}
        <body name="hand" gravcomp="1" pos="0 0 .107" quat="{np.cos(half)} 0 0 {np.sin(half)}">
          <inertial pos="-.01 0 .03" mass=".73" diaginertia=".001 .0025 .0017"/>
          <geom type="box" size=".018 .09 .025" pos="0 0 .03" contype="0" conaffinity="0" rgba=".3 .3 .33 1"/>
          <body name="tips" gravcomp="1" pos="0 0 .1034" quat="0 1 0 0">
            <inertial pos="0 0 .04" mass=".001" diaginertia="1e-6 1e-6 1e-6"/>{mounted}
          </body>
        </body>{closing}"""


PANDA = scenes.Robot(
    body=_arm,
    actuators="".join(
        f'<position joint="joint{i}" kp="{link.stiffness}" kv="{link.damping}"'
        f' forcerange="-{link.torque} {link.torque}"/>'
        for i, link in enumerate(LINKS, start=1)
    ),
)


def forward(joints: Float[Array, "7"]) -> tuple[Float[Array, "3"], Float[Array, "3 3"], Float[Array, "6 7"]]:
    """Position and rotation of the fingertips in the table's frame, and their geometric Jacobian.

    The rotation is the identity when the hand points straight down with its fingers along y. Jacobian rows are linear
    (metres per radian), then angular.
    """
    position, rotation = jnp.array(_BASE), jnp.eye(3)
    origins, axes = [], []
    for i, link in enumerate(LINKS):
        position = position + rotation @ jnp.array(link.position, jnp.float32)
        rotation = rotation @ _about_x(link.quarter_turn) @ _about_z(joints[i])
        origins.append(position)
        axes.append(rotation[:, 2])
    tips = position + rotation[:, 2] * _FLANGE_TO_TIPS
    rotation = rotation @ _about_z(jnp.float32(_HAND_ANGLE)) @ jnp.array(_DOWN, jnp.float32)
    linear = [jnp.cross(axis, tips - origin) for axis, origin in zip(axes, origins, strict=True)]
    return tips, rotation, jnp.concatenate([jnp.stack(linear, axis=1), jnp.stack(axes, axis=1)])


def solve_inverse(
    joints: Float[Array, "7"], position: Float[Array, "3"], rotation: Float[Array, "3 3"], num_solves: int
) -> Float[Array, "7"]:
    """Joints nearer to a fingertip pose by damped least squares, within the joint limits.

    The seventh degree of freedom is drawn to the home posture: the pull is projected into the null space.
    """

    def improve(_, joints):
        tips, attitude, jacobian = forward(joints)
        error = jnp.concatenate([position - tips, rotation_vector(rotation @ attitude.T)])
        inverse = jnp.linalg.solve(jacobian @ jacobian.T + _DAMPING**2 * jnp.eye(6), jacobian).T
        pull = _HOME_PULL * (jnp.array(_HOME, jnp.float32) - joints)
        change = inverse @ error + pull - inverse @ (jacobian @ pull)
        return jnp.clip(joints + change, jnp.array(_LOW, jnp.float32), jnp.array(_HIGH, jnp.float32))

    return jax.lax.fori_loop(0, num_solves, improve, joints)


def rotation_vector(rotation: Float[Array, "3 3"]) -> Float[Array, "3"]:
    """Axis times angle (radians) of a rotation below a half turn; exact to first order near the identity."""
    axis = jnp.stack([
        rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]
    ]) / 2  # fmt: skip
    sine = jnp.sqrt(jnp.sum(axis**2) + 1e-12)
    return axis * jnp.arctan2(sine, (jnp.trace(rotation) - 1) / 2) / sine


def turn(vector: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """The rotation of an axis times angle (radians), by Rodrigues' formula."""
    angle = jnp.sqrt(jnp.sum(vector**2) + 1e-12)
    x, y, z = vector / angle
    zero = jnp.zeros_like(x)
    cross = jnp.stack([jnp.stack([zero, -z, y]), jnp.stack([z, zero, -x]), jnp.stack([-y, x, zero])])
    return jnp.eye(3) + jnp.sin(angle) * cross + (1 - jnp.cos(angle)) * cross @ cross


class PandaEnv(tabletop.TabletopEnv):
    """The tabletop environment with the arm in place of the gripper on slides; `state` is described by STATE_NAMES.

    `physics.target` holds the fingertips' target: position [3] and rotation [9], then the joints' [7].
    """

    action_names = ACTION_NAMES
    state_names = STATE_NAMES
    robot = PANDA

    def __init__(self, config: PandaConfig, prompts: PromptTable):
        super().__init__(config, prompts, task=_TASK, suite="panda")

    def _robot_at(self, hand):
        rotation = _about_z(hand[3])
        joints = solve_inverse(jnp.array(_HOME, jnp.float32), hand[:3], rotation, num_solves=20)
        return joints, jnp.concatenate([hand[:3], rotation.ravel(), joints])

    def _robot_view(self, joints, target):
        tips, rotation, _ = forward(joints)
        desired = target[3:12].reshape(3, 3)
        return {"hand": tips, "yaw": _yaw(rotation), "target": jnp.append(target[:3], _yaw(desired))}

    def _robot_state(self, state: EnvState) -> Float[Array, "s"]:
        view = self.view(state)
        joints = state.physics.qpos[7 * len(self.task.scene.objects) : -2]
        tips, rotation, _ = forward(joints)
        return jnp.concatenate([joints, tips, rotation[:, :2].T.ravel(), view.fingers, view.grip[None]])

    def _aim(self, joints, target, action):
        tips, attitude, _ = forward(joints)
        position = target[:3] + tabletop.TRANSLATION_STEP * action[:3]
        position = jnp.clip(position, jnp.array(tabletop.WORKSPACE_LOW[:3]), jnp.array(tabletop.WORKSPACE_HIGH[:3]))
        position = jnp.clip(position, tips - LEASH, tips + LEASH)
        lead = rotation_vector(turn(tabletop.YAW_STEP * action[3:6]) @ target[3:12].reshape(3, 3) @ attitude.T)
        lead = lead * jnp.minimum(1, _ANGULAR_LEASH / (jnp.linalg.norm(lead) + 1e-6))
        return self._reach(target, position, turn(lead) @ attitude)

    def _reach(self, target, position, rotation):
        """The next drive target and joint goals for a pose of the fingertips, no faster than the joints may turn."""
        goal = solve_inverse(target[12:], position, rotation, _SOLVES)
        reach = jnp.array(_VELOCITY / scenes.CONTROL_HZ, jnp.float32)
        goal = jnp.clip(goal, target[12:] - reach, target[12:] + reach)
        return jnp.concatenate([position, rotation.ravel(), goal]), goal


def attitude_error(target: Float[Array, "t"]) -> Float[Array, "3"]:
    """The rotation (axis times angle) that would bring the target back to pointing down, square to the table."""
    return rotation_vector(target[3:12].reshape(3, 3).T)


def _yaw(rotation: Float[Array, "3 3"]) -> Float[Array, ""]:
    return jnp.arctan2(rotation[1, 0], rotation[0, 0])


def _about_x(quarter_turns: int) -> Float[Array, "3 3"]:
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    return jnp.array([[1.0, 0, 0], [0, cosine, -sine], [0, sine, cosine]], jnp.float32)


def _about_z(angle: Float[Array, ""]) -> Float[Array, "3 3"]:
    cosine, sine, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    return jnp.stack([
        jnp.stack([cosine, -sine, zero]), jnp.stack([sine, cosine, zero]), jnp.stack([zero, zero, zero + 1])
    ])  # fmt: skip
