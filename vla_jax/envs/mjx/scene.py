"""Tabletop scenes as frozen dataclasses of primitive geometries, compiled to MuJoCo, MJX and a table for the renderer.

The robot is a parallel gripper on x, y and z slides and a yaw hinge. Objects move freely. Fixtures (flat zones, open
bins) get a new place every episode through MuJoCo's mocap bodies, so one compiled model serves every episode.

Contact pairs are the cost of a step, so only these exist: object-table, object-finger, object-bin, and object-object
where a scene asks for it. Zones are visual: the physics model leaves them out.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float
from mujoco import mjx

from vla_jax.core import errors

FINGER_RADIUS = 0.012  # metres
FINGER_OPEN = 0.04  # metres of travel of each finger
TABLE_HALF_SIZE = 0.26  # metres
CONTROL_HZ = 20.0
SUBSTEPS = 5
_TIMESTEP = 1 / (CONTROL_HZ * SUBSTEPS)

COLORS = {
    "red": (0.9, 0.1, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "green": (0.1, 0.75, 0.2),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.55, 0.15, 0.7),
    "orange": (0.95, 0.5, 0.1),
}
_TABLE_COLOR = (0.55, 0.5, 0.45)
_PALM_COLOR = (0.3, 0.3, 0.33)
_FINGER_COLOR = (0.25, 0.25, 0.25)
_FINGERTIP_COLOR = (0.1, 0.1, 0.1)


@dataclasses.dataclass(frozen=True)
class Block:
    """A free cube."""

    color: str
    half_size: float = 0.02  # metres
    mass: float = 0.05  # kilograms

    @property
    def height(self) -> float:
        """Of the centre above the table when it rests there."""
        return self.half_size


@dataclasses.dataclass(frozen=True)
class Ball:
    """A free sphere; the air is thick enough to stop it rolling within a second."""

    color: str
    radius: float = 0.02  # metres
    mass: float = 0.03  # kilograms

    @property
    def height(self) -> float:
        return self.radius


@dataclasses.dataclass(frozen=True)
class Zone:
    """A flat coloured disc on the table; things pass through it."""

    color: str
    radius: float = 0.045  # metres


@dataclasses.dataclass(frozen=True)
class Bin:
    """An open box of four walls; the table is its floor."""

    color: str
    half_width: float = 0.045  # metres, outer
    wall_height: float = 0.03
    wall_thickness: float = 0.006


@dataclasses.dataclass(frozen=True)
class FixedCamera:
    """A camera that stays where it is; metres in the world frame, vertical field of view in degrees."""

    name: str
    position: tuple[float, float, float]
    look_at: tuple[float, float, float]
    fovy: float


@dataclasses.dataclass(frozen=True)
class HandCamera(FixedCamera):
    """A camera that moves and turns with the hand; `position` and `look_at` are in the hand's frame."""


FRONT = FixedCamera("front", (0.30, 0.0, 0.38), (0.02, 0.0, 0.02), 50.0)
WRIST = HandCamera("wrist", (0.075, 0.0, 0.10), (0.01, 0.0, 0.0), 75.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What stands on the table. Fixtures are all zones or all bins."""

    objects: tuple[Block | Ball, ...]
    fixtures: tuple[Zone, ...] | tuple[Bin, ...] = ()
    objects_touch: bool = False  # contacts between objects; each box pair about doubles the cost of a step
    flat_fingers: bool = False  # pads instead of ball tips: round tips squeeze a ball out of the grasp
    cameras: tuple[FixedCamera, ...] = (FRONT, WRIST)

    def __post_init__(self):
        if len({type(fixture) for fixture in self.fixtures}) > 1:
            raise errors.ConfigError("Scene.fixtures", expected="all zones or all bins", found=self.fixtures)
        for item in (*self.objects, *self.fixtures):
            if item.color not in COLORS:
                raise errors.ConfigError(f"color {item.color!r} of {item}", fix=errors.closest(item.color, COLORS))


@dataclasses.dataclass(frozen=True)
class Robot:
    """MJCF of a robot whose fingertips meet at the origin of a body with z up when it points down."""

    body: Callable[[str], str]  # from the MJCF of what the hand carries (fingers, cameras)
    actuators: str  # all but the fingers'


@dataclasses.dataclass(frozen=True, eq=False)
class GeomTable:
    """What the renderer must know of a model's geoms, in MuJoCo's order, and of its cameras."""

    kinds: np.ndarray  # [g] mujoco.mjtGeom
    sizes: np.ndarray  # [g, 3] metres, half sizes as in MJCF
    colors: np.ndarray  # [g, 3] in [0, 1]
    camera_bodies: np.ndarray  # [c] body ids
    camera_positions: np.ndarray  # [c, 3] in the frame of the body
    camera_rotations: np.ndarray  # [c, 3, 3] columns are the camera's right, up and backward
    camera_fovy: np.ndarray  # [c] degrees


@dataclasses.dataclass(frozen=True, eq=False)
class SceneModel:
    """A compiled scene. `physics` has what moves or collides; `visual` adds the zones. Both share one `qpos` layout."""

    physics: mujoco.MjModel
    visual: mujoco.MjModel
    mjx_physics: mjx.Model
    mjx_visual: mjx.Model
    initial: mjx.Data  # of the physics model
    initial_visual: mjx.Data
    geoms: GeomTable


def compile_scene(scene: Scene, robot: Robot | None = None) -> SceneModel:
    """Build both models of a scene with the gripper on slides, or with another robot; seconds, on the host."""
    physics = mujoco.MjModel.from_xml_string(mjcf(scene, robot or GRIPPER, with_zones=False))
    visual = mujoco.MjModel.from_xml_string(mjcf(scene, robot or GRIPPER, with_zones=True))
    mjx_physics, mjx_visual = mjx.put_model(physics), mjx.put_model(visual)
    data = mujoco.MjData(physics)
    mujoco.mj_forward(physics, data)  # fills what MJX would otherwise leave at zero
    return SceneModel(
        physics=physics,
        visual=visual,
        mjx_physics=mjx_physics,
        mjx_visual=mjx_visual,
        initial=mjx.put_data(physics, data),
        initial_visual=mjx.make_data(mjx_visual),
        geoms=geom_table(visual),
    )


def geom_table(model: mujoco.MjModel) -> GeomTable:
    rotations = np.zeros((model.ncam, 9))
    for rotation, quaternion in zip(rotations, model.cam_quat, strict=True):
        mujoco.mju_quat2Mat(rotation, quaternion)
    return GeomTable(
        kinds=model.geom_type.copy(),
        sizes=model.geom_size.astype(np.float32),
        colors=model.geom_rgba[:, :3].astype(np.float32),
        camera_bodies=model.cam_bodyid.copy(),
        camera_positions=model.cam_pos.astype(np.float32),
        camera_rotations=rotations.reshape(-1, 3, 3).astype(np.float32),
        camera_fovy=model.cam_fovy.copy(),
    )


def substeps(model: mjx.Model, data: mjx.Data, num_substeps: int) -> mjx.Data:
    """`num_substeps` of MuJoCo's time step, as a loop so that the program stays small."""
    with jax.numpy_rank_promotion("allow"):  # MJX broadcasts vectors against matrices throughout
        return jax.lax.fori_loop(0, num_substeps, lambda _, data: mjx.step(model, data), data)


def kinematics(model: SceneModel, qpos: Float[Array, "q"], fixtures: Float[Array, "p 2"]) -> mjx.Data:
    """World poses of bodies and geoms at `qpos`; those in the data of a finished `mjx.step` are one step old."""
    data = model.initial_visual.replace(qpos=qpos)
    if model.visual.nmocap:
        data = data.replace(mocap_pos=on_table(fixtures))
    with jax.numpy_rank_promotion("allow"):
        return mjx.kinematics(model.mjx_visual, data)


def on_table(places: Float[Array, "p 2"]) -> Float[Array, "p 3"]:
    return jnp.concatenate([places, jnp.zeros((places.shape[0], 1))], axis=1)


def mjcf(scene: Scene, robot: Robot, with_zones: bool) -> str:
    """The scene as MJCF; zones cost a step time and touch nothing, so the physics model goes without them."""
    objects = "".join(_object(i, item, scene.objects_touch) for i, item in enumerate(scene.objects))
    fixtures = "".join(_fixture(i, f) for i, f in enumerate(scene.fixtures) if with_zones or isinstance(f, Bin))
    fixed = "".join(camera_xml(camera) for camera in scene.cameras if not isinstance(camera, HandCamera))
    mounted = "".join(camera_xml(camera) for camera in scene.cameras if isinstance(camera, HandCamera))
    fingers = _finger("finger_left", 1, scene.flat_fingers) + _finger("finger_right", -1, scene.flat_fingers)
    return f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{_TIMESTEP}" iterations="4" ls_iterations="8" integrator="implicitfast">
    <flag eulerdamp="disable"/>
  </option>
  <default><geom solref="0.02 1" solimp=".9 .95 .001"/></default>
  <worldbody>
    <geom name="table" type="plane" size="{TABLE_HALF_SIZE} {TABLE_HALF_SIZE} .05" contype="1" conaffinity="0"
          rgba="{numbers(_TABLE_COLOR)} 1"/>
    {fixed}{objects}{robot.body(mounted + fingers)}{fixtures}
  </worldbody>
  <actuator>
    {robot.actuators}
    <position joint="finger_left" kp="100" kv="4"/><position joint="finger_right" kp="100" kv="4"/>
  </actuator>
</mujoco>"""


def _object(index: int, item: Block | Ball, objects_touch: bool) -> str:
    # condim 4 adds torsional friction, without which a grasped block swings. A ball's rolling is damped at its joint:
    # rolling friction (condim 6) would add four rows to every contact.
    shape = f'type="box" size="{item.height} {item.height} {item.height}"'
    joint = "<freejoint/>"
    if isinstance(item, Ball):
        shape = f'type="sphere" size="{item.radius}"'
        joint = '<joint type="free" damping=".0002"/>'
    bits = f'contype="2" conaffinity="{3 if objects_touch else 1}"'
    return f"""
    <body name="object{index}" pos="0 {0.1 * index} {item.height}">{joint}
      <geom {shape} mass="{item.mass}" condim="4" friction="1.5 .02 .001" {bits}
            rgba="{numbers(COLORS[item.color])} 1"/>
    </body>"""


def _gripper(mounted: str) -> str:
    return f"""
    <body name="hand" gravcomp="1">
      <joint name="x" type="slide" axis="1 0 0" damping="5"/>
      <joint name="y" type="slide" axis="0 1 0" damping="5"/>
      <joint name="z" type="slide" axis="0 0 1" damping="5"/>
      <joint name="yaw" type="hinge" axis="0 0 1" damping=".05" armature=".01"/>
      <geom type="box" size=".018 .06 .012" pos="0 0 .075" mass=".4" contype="0" conaffinity="0"
            rgba="{numbers(_PALM_COLOR)} 1"/>
      {mounted}
    </body>"""


GRIPPER = Robot(
    body=_gripper,
    actuators="".join(f'<position joint="{axis}" kp="400" kv="30"/>' for axis in "xyz")
    + '<position joint="yaw" kp="10" kv=".8"/>',
)


def _finger(name: str, side: int, is_flat: bool) -> str:
    """A bar to look at and a tip to grasp with, whose inner side is at the finger's travel."""
    y = side * FINGER_RADIUS
    tip = f'type="sphere" size="{FINGER_RADIUS}" pos="0 {y} 0"'  # the cheapest contacts
    if is_flat:
        tip = f'type="box" size=".014 {FINGER_RADIUS / 2} .012" pos="0 {y / 2} 0"'
    return f"""
      <body name="{name}" gravcomp="1">
        <joint name="{name}" type="slide" axis="0 {side} 0" damping="1" armature=".02"/>
        <geom type="box" size=".008 .006 .035" pos="0 {y} .035" mass="0" contype="0" conaffinity="0"
              rgba="{numbers(_FINGER_COLOR)} 1"/>
        <geom {tip} mass=".02" condim="4" friction="1.5 .02 .001"
              contype="0" conaffinity="2" rgba="{numbers(_FINGERTIP_COLOR)} 1"/>
      </body>"""


def _fixture(index: int, fixture: Zone | Bin) -> str:
    color = f'rgba="{numbers(COLORS[fixture.color])} 1"'
    if isinstance(fixture, Zone):
        geoms = (
            f'<geom type="cylinder" size="{fixture.radius} .001" pos="0 0 .001" contype="0" conaffinity="0" {color}/>'
        )
    else:
        width, half, height = fixture.half_width, fixture.wall_thickness / 2, fixture.wall_height / 2
        middle = width - half
        walls = [(side * middle, 0, half, width) for side in (-1, 1)]
        walls += [(0, side * middle, width, half) for side in (-1, 1)]
        geoms = "".join(
            f'<geom type="box" size="{sx} {sy} {height}" pos="{x} {y} {height}" contype="0" conaffinity="2" {color}/>'
            for x, y, sx, sy in walls
        )
    return f'<body name="fixture{index}" mocap="true">{geoms}</body>'


def camera_xml(camera: FixedCamera) -> str:
    """MJCF of a camera; its image's up is the world's (or hand's) z."""
    backward = np.subtract(camera.position, camera.look_at)
    backward /= np.linalg.norm(backward)
    right = np.cross((0, 0, 1), backward)
    right /= np.linalg.norm(right)
    axes = numbers((*right, *np.cross(backward, right)))
    return f'<camera name="{camera.name}" pos="{numbers(camera.position)}" xyaxes="{axes}" fovy="{camera.fovy}"/>'


def numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values)
