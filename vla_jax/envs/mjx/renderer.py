"""A ray renderer of MuJoCo's primitive geoms in pure JAX: it runs inside a jit, vmaps, and needs no OpenGL.

Every ray meets every geom (no acceleration structure: scenes have tens of geoms), then only the nearest hit is
shaded. Arrays hold one coordinate each and `optimization_barrier` stands between the passes, because XLA on a CPU
otherwise recomputes the intersections inside every consumer.

Letters: g geoms, r rays (height * width).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt8

from vla_jax.core import errors

_PLANE, _SPHERE, _CAPSULE, _CYLINDER, _BOX = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}")) for name in ("PLANE", "SPHERE", "CAPSULE", "CYLINDER", "BOX")
)
_FAR = 1e6  # metres; the distance of a ray that hits nothing
_NEAR = 1e-4  # metres; hits nearer than this are behind the camera or are the surface a shadow ray leaves
_TINY = 1e-6
_SKY = (0.6, 0.75, 0.9)
_TILES_PER_METRE = 5.0  # of the checker on planes

Vector = list[Array]  # three arrays, one per axis


class Light(struct.PyTreeNode):
    """One directional light; the shade of a surface is `ambient + diffuse * cos + 0.2 * facing the camera`."""

    direction: Float[Array, "3"]  # the way light travels, unit length
    ambient: Float[Array, ""]
    diffuse: Float[Array, ""]


class Rendering(struct.PyTreeNode):
    """One image. What the caller does not use, XLA removes from the program."""

    rgb: UInt8[Array, "height width 3"]
    depth: Float[Array, "height width"]  # metres along the camera's axis, as mujoco.Renderer; 0 where nothing is hit
    segmentation: Int[Array, "height width"]  # geom id, -1 where nothing is hit


def default_light() -> Light:
    direction = np.array([-0.3, 0.2, -1.0])
    return Light(
        direction=jnp.asarray(direction / np.linalg.norm(direction), jnp.float32),
        ambient=jnp.float32(0.25),
        diffuse=jnp.float32(0.55),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RayRenderer:
    """Renders one camera of fixed size; poses, colours and light are arguments, so all of them may be randomized.

    `kinds` and `sizes` are those of `mujoco.MjModel`: plane, sphere, capsule, cylinder and box. Raises ConfigError for
    other geoms.
    """

    kinds: np.ndarray  # [g]
    sizes: np.ndarray  # [g, 3]
    height: int
    width: int
    fovy: float  # vertical field of view, degrees
    shadows: bool = False  # a second ray per pixel: half the speed

    def __post_init__(self):
        unknown = sorted(set(self.kinds.tolist()) - set(_HIT))
        if unknown:
            raise errors.ConfigError(
                "RayRenderer.kinds",
                expected="plane, sphere, capsule, cylinder or box",
                found=[mujoco.mjtGeom(kind).name for kind in unknown],
            )

    def __call__(
        self,
        position: Float[Array, "g 3"],
        rotation: Float[Array, "g 3 3"],
        color: Float[Array, "g 3"],
        camera_position: Float[Array, "3"],
        camera_rotation: Float[Array, "3 3"],
        light: Light,
    ) -> Rendering:
        """One image of geoms at these world poses; `camera_rotation` has right, up and backward as columns."""
        order = np.argsort([list(_HIT).index(kind) for kind in self.kinds], kind="stable")  # equal kinds side by side
        grouped = _Geoms(self.kinds[order], jnp.asarray(self.sizes[order]), position[order], rotation[order])
        local, stretch = _rays(self.height, self.width, self.fovy)
        direction = [sum(local[c] * camera_rotation[i, c] for c in range(3)) for i in range(3)]
        origin = [camera_position[i] for i in range(3)]

        distances = grouped.cast(origin, direction)
        nearest, distance = distances.argmin(0), distances.min(0)
        distance, nearest = jax.lax.optimization_barrier((distance, nearest))
        is_hit = distance < _FAR / 2
        point = [origin[i] + distance * direction[i] for i in range(3)]
        normal = grouped.normal(nearest, point)

        shade = self._shade(grouped, nearest, point, normal, direction, light)
        rgb = jnp.where(is_hit[:, None], color[order][nearest] * shade[:, None], jnp.array([_SKY]))
        shape = (self.height, self.width)
        return Rendering(
            rgb=(jnp.clip(rgb, 0, 1) * 255).astype(jnp.uint8).reshape(*shape, 3),
            depth=jnp.where(is_hit, distance / stretch, 0.0).reshape(shape),
            segmentation=jnp.where(is_hit, jnp.asarray(order)[nearest], -1).reshape(shape),
        )

    def _shade(self, geoms, nearest, point, normal, direction, light) -> Float[Array, "r"]:
        to_light = [-light.direction[i] for i in range(3)]
        lambert = jnp.maximum(_dot(normal, to_light), 0)
        if self.shadows:
            lifted = [point[i] + 2e-3 * normal[i] for i in range(3)]  # off the surface, or it would shadow itself
            lambert = jnp.where(geoms.cast(lifted, to_light).min(0) < _FAR / 2, 0.0, lambert)
        tile = (jnp.floor(point[0] * _TILES_PER_METRE) + jnp.floor(point[1] * _TILES_PER_METRE)) % 2
        checker = jnp.where(jnp.asarray(geoms.kinds)[nearest] == _PLANE, 0.75 + 0.25 * tile, 1.0)
        facing = jnp.maximum(-_dot(normal, direction), 0)
        return checker * (light.ambient + light.diffuse * lambert + 0.2 * facing)


class _Geoms:
    """Geoms sorted by kind, so that each kind is one batched intersection."""

    def __init__(self, kinds: np.ndarray, sizes: Array, position: Array, rotation: Array):
        self.kinds, self.sizes, self.position, self.rotation = kinds, sizes, position, rotation

    def cast(self, origin: Vector, direction: Vector) -> Float[Array, "g r"]:
        """Distance along every ray to every geom."""
        hits, num_rays = [], max(jnp.size(part) for part in (*origin, *direction))
        origin, direction = ([jnp.reshape(part, (1, -1)) for part in vector] for vector in (origin, direction))
        for kind, hit in _HIT.items():
            (ids,) = np.nonzero(self.kinds == kind)
            if len(ids) == 0:
                continue
            span = slice(ids[0], ids[-1] + 1)
            rotation = self.rotation[span]
            offset = [origin[c] - self.position[span, c][:, None] for c in range(3)]
            local_origin = [sum(offset[c] * rotation[:, c, i][:, None] for c in range(3)) for i in range(3)]
            local_direction = [sum(direction[c] * rotation[:, c, i][:, None] for c in range(3)) for i in range(3)]
            size = [self.sizes[span, i][:, None] for i in range(3)]
            hits.append(jnp.broadcast_to(hit(local_origin, local_direction, size), (len(ids), num_rays)))
        return jnp.concatenate([jax.lax.optimization_barrier(distance) for distance in hits])

    def normal(self, nearest: Int[Array, "r"], point: Vector) -> Vector:
        """Outward unit normal of geom `nearest[r]` at the world point `point[.][r]` on it."""
        gathered = (self.rotation[nearest], self.sizes[nearest], jnp.asarray(self.kinds)[nearest])
        rotation, size, kind = jax.lax.optimization_barrier(gathered)
        center = self.position[nearest]
        x, y, z = (sum((point[c] - center[:, c]) * rotation[:, c, i] for c in range(3)) for i in range(3))
        zero, one = jnp.zeros_like(z), jnp.ones_like(z)
        beyond_axis = z - jnp.clip(z, -size[:, 1], size[:, 1])
        on_cap = jnp.abs(z) >= size[:, 1] - 1e-5
        outside = [jnp.abs(part) - size[:, i] for i, part in enumerate((x, y, z))]
        face = jnp.maximum(outside[0], jnp.maximum(outside[1], outside[2]))
        by_kind = {
            _PLANE: (zero, zero, one),
            _SPHERE: (x, y, z),
            _CAPSULE: (x, y, beyond_axis),
            _CYLINDER: (jnp.where(on_cap, zero, x), jnp.where(on_cap, zero, y), jnp.where(on_cap, jnp.sign(z), zero)),
            _BOX: tuple(jnp.sign(part) * (outside[i] >= face) for i, part in enumerate((x, y, z))),
        }
        present = [k for k in by_kind if k in set(self.kinds.tolist())]
        local = [jnp.select([kind == k for k in present], [by_kind[k][i] for k in present]) for i in range(3)]
        world = [sum(local[i] * rotation[:, c, i] for i in range(3)) for c in range(3)]
        scale = jax.lax.rsqrt(_dot(world, world) + 1e-12)
        return jax.lax.optimization_barrier([part * scale for part in world])


def _rays(height: int, width: int, fovy: float) -> tuple[Vector, Float[Array, "r"]]:
    """Unit directions through the pixel centres in the camera's frame, and their length per metre of depth."""
    slope = np.tan(np.deg2rad(fovy) / 2)
    y, x = np.mgrid[0:height, 0:width]
    right = (2 * (x + 0.5) / width - 1) * slope * width / height
    up = -(2 * (y + 0.5) / height - 1) * slope
    rays = np.stack([right, up, -np.ones_like(up)]).reshape(3, -1)
    stretch = np.linalg.norm(rays, axis=0)
    return [jnp.asarray(part, jnp.float32) for part in rays / stretch], jnp.asarray(stretch, jnp.float32)


def _dot(a: Vector, b: Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _nonzero(value: Array) -> Array:
    return jnp.where(jnp.abs(value) < _TINY, _TINY, value)


def _ahead(is_hit: Array, distance: Array) -> Array:
    return jnp.where(is_hit & (distance > _NEAR), distance, _FAR)


# Each hit function takes a ray in the geom's frame and MuJoCo's size, and returns the distance of the nearest hit
# from outside; a camera inside a geom does not see it, as in MuJoCo's back-face culling.


def _hit_plane(origin: Vector, direction: Vector, size: Vector) -> Array:
    distance = -origin[2] / _nonzero(direction[2])
    inside = [(size[i] <= 0) | (jnp.abs(origin[i] + distance * direction[i]) < size[i]) for i in range(2)]
    return _ahead(inside[0] & inside[1] & (origin[2] > 0), distance)


def _hit_sphere(origin: Vector, direction: Vector, size: Vector) -> Array:
    toward = _dot(origin, direction)
    discriminant = toward * toward - _dot(origin, origin) + size[0] * size[0]
    return _ahead(discriminant > 0, -toward - jnp.sqrt(jnp.maximum(discriminant, 0)))


def _hit_tube(origin: Vector, direction: Vector, size: Vector) -> Array:
    """The side of a cylinder along z."""
    a = direction[0] * direction[0] + direction[1] * direction[1] + 1e-9
    b = origin[0] * direction[0] + origin[1] * direction[1]
    c = origin[0] * origin[0] + origin[1] * origin[1] - size[0] * size[0]
    discriminant = b * b - a * c
    distance = (-b - jnp.sqrt(jnp.maximum(discriminant, 0))) / a
    return _ahead((discriminant > 0) & (jnp.abs(origin[2] + distance * direction[2]) <= size[1]), distance)


def _hit_capsule(origin: Vector, direction: Vector, size: Vector) -> Array:
    caps = [_hit_sphere([origin[0], origin[1], origin[2] - z], direction, size) for z in (size[1], -size[1])]
    return jnp.minimum(_hit_tube(origin, direction, size), jnp.minimum(*caps))


def _hit_cylinder(origin: Vector, direction: Vector, size: Vector) -> Array:
    down = _nonzero(direction[2])
    distance = (-jnp.sign(down) * size[1] - origin[2]) / down
    x, y = (origin[i] + distance * direction[i] for i in range(2))
    cap = _ahead(x * x + y * y < size[0] * size[0], distance)
    return jnp.minimum(_hit_tube(origin, direction, size), cap)


def _hit_box(origin: Vector, direction: Vector, size: Vector) -> Array:
    enter, leave = -_FAR, _FAR
    for i in range(3):
        inverse = 1 / _nonzero(direction[i])
        center, half = -origin[i] * inverse, size[i] * jnp.abs(inverse)
        enter, leave = jnp.maximum(enter, center - half), jnp.minimum(leave, center + half)
    return _ahead(enter < leave, enter)


_HIT: dict[int, Callable[[Vector, Vector, Vector], Array]] = {
    _PLANE: _hit_plane,
    _SPHERE: _hit_sphere,
    _CAPSULE: _hit_capsule,
    _CYLINDER: _hit_cylinder,
    _BOX: _hit_box,
}
