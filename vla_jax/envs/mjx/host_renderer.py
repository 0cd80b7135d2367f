"""mujoco.Renderer on an EnvState: OpenGL pictures for videos, and the reference the ray renderer is tested against."""

import os
from types import TracebackType

import mujoco
import numpy as np

from vla_jax.core import errors
from vla_jax.envs.base import EnvState
from vla_jax.envs.mjx.scene import SceneModel

_PACKAGES = "libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0"


class HostRenderer:
    """Renders on the host, one state at a time; use it as a context manager, it holds an OpenGL context.

    Raises EnvError where OpenGL cannot be loaded. `plain` turns off shadows, reflections and multisampling, which
    cost more than the picture itself.
    """

    def __init__(self, model: SceneModel, height: int, width: int, plain: bool = True):
        self._model, self._data = model.visual, mujoco.MjData(model.visual)
        if plain:
            self._model.vis.quality.shadowsize = 0
            self._model.vis.quality.offsamples = 0
        self._model.vis.global_.offheight = max(height, self._model.vis.global_.offheight)
        self._model.vis.global_.offwidth = max(width, self._model.vis.global_.offwidth)
        try:
            self._renderer = mujoco.Renderer(self._model, height, width)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise errors.EnvError(
                "no OpenGL for mujoco.Renderer",
                expected="a loadable back end, named by MUJOCO_GL=egl or MUJOCO_GL=osmesa",
                found=f"MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}: {type(error).__name__}: {error}",
                fix=f"on Debian or Ubuntu: apt-get install {_PACKAGES}",
            ) from error
        if plain:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0

    def __enter__(self) -> "HostRenderer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._renderer.close()

    def rgb(self, state: EnvState, camera: str) -> np.ndarray:
        """uint8 [height, width, 3]."""
        self._show(state, camera)
        return self._renderer.render()

    def depth(self, state: EnvState, camera: str) -> np.ndarray:
        """float32 [height, width], metres along the camera's axis."""
        self._renderer.enable_depth_rendering()
        self._show(state, camera)
        depth = self._renderer.render()
        self._renderer.disable_depth_rendering()
        return depth

    def _show(self, state: EnvState, camera: str) -> None:
        set_state(self._model, self._data, state)
        self._renderer.update_scene(self._data, camera=camera)


def set_state(model: mujoco.MjModel, data: mujoco.MjData, state: EnvState) -> None:
    """Put one unbatched state into host MuJoCo and compute its poses."""
    data.qpos[:] = np.asarray(state.physics.qpos)
    if model.nmocap:
        data.mocap_pos[:, :2] = np.asarray(state.physics.fixtures)
        data.mocap_pos[:, 2] = 0
    mujoco.mj_kinematics(model, data)
    mujoco.mj_camlight(model, data)
