"""The ray renderer against two references: mujoco.mj_ray on the host (always) and OpenGL (where it loads)."""

import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.core.types import PromptTable
from vla_jax.envs.mjx import renderer as renderers
from vla_jax.envs.mjx import scene as scenes
from vla_jax.envs.mjx.host_renderer import HostRenderer, set_state
from vla_jax.envs.mjx.tabletop import Randomization, TabletopConfig, TabletopEnv

_SIZE = 32
_ALL_KINDS = """
<mujoco><worldbody>
  <camera name="eye" pos="0.7 -0.5 0.6" xyaxes="0.58 0.81 0 -0.46 0.33 0.82" fovy="55"/>
  <geom type="plane" size="1 .6 .1" pos="0 0 -.1" euler="3 5 10"/>
  <geom type="sphere" size=".12" pos=".2 .2 .1"/>
  <geom type="capsule" size=".05 .15" pos="-.2 .1 .1" euler="40 20 10"/>
  <geom type="cylinder" size=".08 .1" pos=".1 -.2 .05" euler="60 0 30"/>
  <geom type="box" size=".1 .06 .08" pos="-.1 -.2 .1" euler="20 30 40"/>
</worldbody></mujoco>"""


@functools.cache
def _env(task, **overrides):
    config = TabletopConfig(task=task, image_size=_SIZE, **overrides)
    shape = (len(config.instructions), 2)
    return TabletopEnv(config, PromptTable(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)))


def _mj_ray(model, data, camera, size):
    """Depth and geom id per pixel centre, by MuJoCo's own ray caster, one ray at a time."""
    slope = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
    rotation = data.cam_xmat[camera].reshape(3, 3)
    depth, ids, geom = np.zeros((size, size)), np.full((size, size), -1), np.zeros(1, np.int32)
    for row in range(size):
        for column in range(size):
            ray = np.array([(2 * (column + 0.5) / size - 1) * slope, -(2 * (row + 0.5) / size - 1) * slope, -1.0])
            stretch = np.linalg.norm(ray)
            distance = mujoco.mj_ray(model, data, data.cam_xpos[camera], rotation @ ray / stretch, None, 1, -1, geom)
            if distance >= 0:
                depth[row, column], ids[row, column] = distance / stretch, geom[0]
    return depth, ids


def _assert_same_scene(rendering, depth, ids):
    # Pixels whose ray grazes a silhouette may go either way in float32.
    assert (np.asarray(rendering.segmentation) == ids).mean() > 0.995
    same = np.asarray(rendering.segmentation) == ids
    np.testing.assert_allclose(np.asarray(rendering.depth)[same], depth[same], atol=1e-4)


def test_every_kind_of_geom_matches_mj_ray():
    model = mujoco.MjModel.from_xml_string(_ALL_KINDS)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = renderers.RayRenderer(model.geom_type, model.geom_size, 48, 48, 55.0)
    rendering = jax.jit(renderer)(
        jnp.asarray(data.geom_xpos, jnp.float32),
        jnp.asarray(data.geom_xmat.reshape(-1, 3, 3), jnp.float32),
        jnp.ones((model.ngeom, 3)),
        jnp.asarray(data.cam_xpos[0], jnp.float32),
        jnp.asarray(data.cam_xmat[0].reshape(3, 3), jnp.float32),
        renderers.default_light(),
    )
    depth, ids = _mj_ray(model, data, 0, 48)
    assert set(ids.ravel()) == {-1, 0, 1, 2, 3, 4}  # the picture shows all of them
    _assert_same_scene(rendering, depth, ids)


@pytest.mark.parametrize("task", ["place", "bin"])
def test_cameras_match_mj_ray(task):
    env = _env(task)
    state = jax.jit(env.reset)(jax.random.key(3))
    renderings = jax.jit(env.render)(state)
    model = env.model.visual
    data = mujoco.MjData(model)
    set_state(model, data, state)
    for camera, name in enumerate(("front", "wrist")):
        _assert_same_scene(renderings[name], *_mj_ray(model, data, camera, _SIZE))


def test_depth_matches_opengl():
    env = _env("place")
    state = jax.jit(env.reset)(jax.random.key(4))
    try:
        host = HostRenderer(env.model, _SIZE, _SIZE)
    except errors.EnvError as error:
        pytest.skip(str(error))
    with host:
        for name, rendering in jax.jit(env.render)(state).items():
            seen = np.asarray(rendering.segmentation) >= 0  # OpenGL gives its far plane where nothing is hit
            difference = np.abs(host.depth(state, name) - np.asarray(rendering.depth))[seen]
            assert np.median(difference) < 1e-4
            assert (difference > 0.01).mean() < 0.01  # silhouettes


def test_a_sphere_ahead_is_a_disc_of_the_right_size():
    # Radius 1 at distance 5 fills asin(1/5); at 90 degrees of view the edge is at tan(asin(.2)) * 50 = 10.2 pixels.
    renderer = renderers.RayRenderer(np.array([int(mujoco.mjtGeom.mjGEOM_SPHERE)]), np.ones((1, 3)), 100, 100, 90.0)
    rendering = renderer(
        jnp.array([[0.0, 0, -5]]),
        jnp.eye(3)[None],
        jnp.ones((1, 3)),
        jnp.zeros(3),
        jnp.eye(3),
        renderers.default_light(),
    )
    assert (rendering.segmentation == 0).sum() == pytest.approx(np.pi * 10.2**2, rel=0.02)
    assert rendering.depth[50, 50] == pytest.approx(4.0, abs=1e-2)


def test_shadows_darken_what_the_sphere_hides_and_nothing_else():
    kinds = np.array([int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_SPHERE)])
    sizes = np.array([[0, 0, 1], [0.5, 0, 0]])
    position = jnp.array([[0.0, 0, 0], [0, 0, 2.0]])
    arguments = (
        position,
        jnp.stack([jnp.eye(3)] * 2),
        jnp.ones((2, 3)),
        jnp.array([4.0, 0, 6.0]),
        jnp.asarray(np.array([[0, -0.83, 0.55], [1, 0, 0], [0, 0.55, 0.83]])),
        renderers.default_light().replace(direction=jnp.array([0.0, 0, -1])),
    )
    lit = renderers.RayRenderer(kinds, sizes, 48, 48, 60.0)(*arguments)
    shaded = renderers.RayRenderer(kinds, sizes, 48, 48, 60.0, shadows=True)(*arguments)
    darker = np.asarray(shaded.rgb).sum(-1) < np.asarray(lit.rgb).sum(-1)
    assert 0 < darker.sum() < 0.2 * darker.size
    assert (np.asarray(lit.segmentation)[darker] == 0).mean() > 0.6  # the floor below, and the sphere's own underside
    assert not (np.asarray(shaded.rgb).sum(-1) > np.asarray(lit.rgb).sum(-1)).any()


def test_colours_are_arguments_of_the_program():
    plain, varied = _env("place"), _env("place", randomization=Randomization(color=0.3))
    key = jax.random.key(6)
    left, right = jax.jit(plain.render)(plain.reset(key)), jax.jit(varied.render)(varied.reset(key))
    assert (left["front"].rgb != right["front"].rgb).any()
    np.testing.assert_array_equal(left["front"].segmentation, right["front"].segmentation)


def test_geoms_it_cannot_draw_are_named():
    with pytest.raises(errors.ConfigError, match="ELLIPSOID"):
        renderers.RayRenderer(np.array([int(mujoco.mjtGeom.mjGEOM_ELLIPSOID)]), np.ones((1, 3)), 8, 8, 45.0)


def test_a_scene_of_unknown_colour_is_refused():
    with pytest.raises(errors.ConfigError, match="red"):
        scenes.Scene((scenes.Block("rad"),))
