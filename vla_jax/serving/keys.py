"""Fields of a request become what a policy sees: which key is which camera, sizes, ranges, tokens.

    flat    observation/<camera of the policy>, observation/state, prompt
    libero  observation/image, observation/wrist_image, observation/state, prompt
    droid   observation/exterior_image_1_left (_2_), observation/wrist_image_left, observation/joint_position,
            observation/gripper_position, prompt
    data    the names of the data the policy was trained on

libero and droid are what openpi's robots send. Any request may use any layout: the one that most of its keys belong to
is meant. A picture is uint8 [height, width, 3], or the bytes of a JPEG or PNG. Maps inside maps are joined by "/".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from vla_jax.core import errors
from vla_jax.core.images import average_blocks
from vla_jax.core.wire import Value
from vla_jax.data.formats import image_codec
from vla_jax.data.pictures.resize import Fit, resize
from vla_jax.training.recipe import Recipe
from vla_jax.training.trained import Edges, TrainedPolicy

PROMPT, SEED = "prompt", "seed"
PREVIOUS, FROZEN = "realtime/actions", "realtime/frozen"
_MAX_PIXELS = 1 << 23  # of one picture, as many as 4K has; the header of a small JPEG may claim gigabytes
_LIBERO = (("observation/image",), "observation/wrist_image", ("observation/state",))
_DROID = (
    ("observation/exterior_image_1_left", "observation/exterior_image_2_left"),
    "observation/wrist_image_left",
    ("observation/joint_position", "observation/gripper_position"),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which keys of a request hold what."""

    name: str
    cameras: tuple[tuple[str, str], ...]  # (key, camera of the policy)
    state_keys: tuple[str, ...]  # joined in this order

    @property
    def keys(self) -> tuple[str, ...]:
        return (*(key for key, _ in self.cameras), *self.state_keys)


@dataclasses.dataclass(frozen=True)
class Previous:
    """The part of the chunk being run that the next one overlaps, for real-time chunking."""

    actions: Float32[np.ndarray, "h a"]  # of the robot; from the step of this observation on, zeros past `overlap`
    frozen: int  # steps that will have been run when the next chunk arrives
    overlap: int  # steps that are left


@dataclasses.dataclass(frozen=True)
class Request:
    """One observation, checked and in the policy's shapes, in physical units."""

    images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    image_mask: Mapping[str, bool]
    state: Float32[np.ndarray, "s"]
    prompt: Int[np.ndarray, "l"]
    prompt_mask: Bool[np.ndarray, "l"]
    seed: int | None = None  # of the policy's noise; None: the server draws one
    previous: Previous | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RequestReader:
    """Reads requests for one policy. Threads may share it."""

    layouts: tuple[Layout, ...]
    edges: Edges
    cameras: tuple[str, ...]
    optional_cameras: frozenset[str]  # black and masked where a request lacks them
    fit: Fit  # of pictures that are neither of the policy's size nor a whole multiple of it
    action_horizon: int
    default_prompt: str | None = None
    takes_previous: bool = False

    @classmethod
    def of(
        cls,
        policy: TrainedPolicy,
        *,
        layout: str | None = None,
        default_prompt: str | None = None,
        takes_previous: bool = False,
    ) -> "RequestReader":
        """For a checkpoint. `layout` names the only one to take. Raises ConfigError for a layout that the policy's
        cameras do not fit."""
        recipe = policy.recipe
        known = {each.name: each for each in layouts_of(recipe)}
        if layout is not None and layout not in known:
            raise errors.ConfigError(
                f"key layout {layout!r} for the cameras {recipe.policy.backbone.cameras}",
                fix=errors.closest(layout, known),
            )
        optional = [set(dataset.optional_cameras) for dataset in recipe.data.datasets]
        return cls(
            layouts=tuple(known.values()) if layout is None else (known[layout],),
            edges=policy.edges,
            cameras=tuple(recipe.policy.backbone.cameras),
            optional_cameras=frozenset(set.intersection(*optional) if optional else ()),
            fit="pad" if policy.edges.resize is None else policy.edges.resize[2],
            action_horizon=recipe.policy.decoder.action_horizon,
            default_prompt=default_prompt,
            takes_previous=takes_previous,
        )

    def read(self, message: Mapping[str, Value]) -> Request:
        """Raises RequestError, whose place begins with the field, for what the policy cannot use."""
        fields = flatten(message)
        layout = max(self.layouts, key=lambda each: sum(key in fields for key in each.keys))  # ties: the first
        for key in self._missing(layout, fields):
            raise errors.RequestError(
                key,
                expected=f"this field, of layout {layout.name!r}",
                found="none",
                fix=f"send {', '.join(layout.keys)}; {errors.closest(key, fields)}",
            )
        images, image_mask = {}, {}
        blank = np.zeros((*self.edges.image_size, 3), np.uint8)
        for key, camera in layout.cameras:
            image_mask[camera] = key in fields
            images[camera] = self._image(key, fields[key]) if key in fields else blank
        for camera in set(self.cameras) - set(images):
            images[camera], image_mask[camera] = blank, False
        prompt, prompt_mask = self._prompt(fields.get(PROMPT, self.default_prompt))
        return Request(
            images, image_mask, self._state(layout, fields), prompt, prompt_mask, _seed(fields), self._previous(fields)
        )

    def _missing(self, layout: Layout, fields: Mapping[str, Value]) -> list[str]:
        optional = {key for key, camera in layout.cameras if camera in self.optional_cameras}
        return [key for key in layout.keys if key not in fields and key not in optional]

    def _image(self, key: str, value: Value) -> UInt8[np.ndarray, "height width 3"]:
        picture = _decoded(key, value) if isinstance(value, bytes) else value
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            found = picture.dtype if isinstance(picture, np.ndarray) else type(value).__name__
            raise errors.RequestError(key, expected="a picture, uint8, or the bytes of a JPEG or PNG", found=found)
        if picture.ndim != 3 or picture.shape[-1] != 3 or min(picture.shape) < 1:
            raise errors.RequestError(key, expected="uint8 [height, width, 3]", found=list(picture.shape))
        if picture.shape[0] * picture.shape[1] > _MAX_PIXELS:
            raise errors.RequestError(key, expected=f"at most {_MAX_PIXELS} pixels", found=list(picture.shape))
        height, width = self.edges.image_size
        factor = max(1, picture.shape[0] // height)
        if self.edges.resize is None and picture.shape[:2] == (height * factor, width * factor):
            return average_blocks(picture, factor)  # as evaluation does
        return resize(picture, (height, width, self.fit))

    def _state(self, layout: Layout, fields: Mapping[str, Value]) -> Float32[np.ndarray, "s"]:
        parts = [numbers(key, fields[key]).reshape(-1) for key in layout.state_keys]
        state, expected = np.concatenate(parts), self.edges.normalizer.state_dim
        if len(state) != expected:
            raise errors.RequestError(
                " + ".join(layout.state_keys),
                expected=f"{expected} numbers together",
                found=" + ".join(str(len(part)) for part in parts),
            )
        return state

    def _prompt(self, value: Value) -> tuple[Int[np.ndarray, "l"], Bool[np.ndarray, "l"]]:
        if not isinstance(value, str):
            raise errors.RequestError(
                PROMPT, expected="the instruction, a text", found="none" if value is None else type(value).__name__
            )
        try:
            return self.edges.encode(value)
        except errors.ConfigError as error:
            raise errors.RequestError(
                f"{PROMPT}: {error.place}", expected=error.expected, found=error.found, fix=error.fix
            ) from error

    def _previous(self, fields: Mapping[str, Value]) -> Previous | None:
        if PREVIOUS not in fields and FROZEN not in fields:
            return None
        if not self.takes_previous:
            raise errors.RequestError(
                PREVIOUS,
                expected="no chunk to go on from",
                found="one",
                fix="start the server with --realtime True; the policy has to be a flow policy",
            )
        width = self.edges.normalizer.robot_action_dim
        left = numbers(PREVIOUS, fields.get(PREVIOUS))
        if left.ndim != 2 or left.shape[1] != width or not 0 < len(left) <= self.action_horizon:
            raise errors.RequestError(
                PREVIOUS,
                expected=f"actions [1 to {self.action_horizon}, {width}], as the server answers them",
                found=list(left.shape),
            )
        frozen = whole_number(FROZEN, fields.get(FROZEN), 0, len(left))
        actions = np.zeros((self.action_horizon, width), np.float32)
        actions[: len(left)] = left
        return Previous(actions, frozen, len(left))


def layouts_of(recipe: Recipe) -> tuple[Layout, ...]:
    """Every layout that a policy of this recipe can be served with, the preferred one first."""
    cameras = tuple(recipe.policy.backbone.cameras)
    found = [Layout("flat", tuple((f"observation/{name}", name) for name in cameras), ("observation/state",))]
    for dataset in recipe.data.datasets:
        named = tuple((names[0], ours) for ours, names in dataset.camera_names.items() if ours in cameras)
        found.append(Layout("data", named, dataset.state_names))
    found += [_by_role("libero", cameras, *_LIBERO), _by_role("droid", cameras, *_DROID)]
    named: dict[str, Layout] = {}
    for layout in found:
        if layout is None or layout.keys in [other.keys for other in named.values()]:
            continue
        number = 1 + sum(name.partition(" ")[0] == layout.name for name in named)
        name = layout.name if number == 1 else f"{layout.name} {number}"
        named[name] = dataclasses.replace(layout, name=name)
    return tuple(named.values())


def _by_role(
    name: str, cameras: Sequence[str], outside_keys: Sequence[str], wrist_key: str, state_keys: tuple[str, ...]
) -> Layout | None:
    """The policy's cameras on a robot's keys: the one called wrist on its wrist camera, the others in order. None where
    the robot has too few."""
    wrist = [camera for camera in cameras if "wrist" in camera or "hand" in camera]
    outside = [camera for camera in cameras if camera not in wrist]
    if len(wrist) > 1 or len(outside) > len(outside_keys):
        return None
    pairs = (*zip(outside_keys, outside, strict=False), *((wrist_key, camera) for camera in wrist))
    return Layout(name, pairs, state_keys)


def flatten(message: Mapping[str, Value], prefix: str = "") -> dict[str, Value]:
    """Maps inside maps as one, keys joined by "/". Raises RequestError where that makes a key twice."""
    fields: dict[str, Value] = {}
    for key, value in message.items():
        inner = flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
        if twice := fields.keys() & inner.keys():
            raise errors.RequestError(min(twice), expected="each key once", found="it twice")
        fields |= inner
    return fields


def numbers(key: str, value: Value) -> Float32[np.ndarray, "..."]:
    """A field of finite numbers: an array, a list or a single one."""
    if (isinstance(value, list) and all(type(item) in (int, float) for item in value)) or type(value) in (int, float):
        value = np.asarray(value, np.float64)
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "fiu":
        found = value.dtype if isinstance(value, np.ndarray | np.generic) else type(value).__name__
        raise errors.RequestError(key, expected="numbers, such as an array of float32", found=found)
    with np.errstate(over="ignore"):
        array: Float[np.ndarray, ...] = np.asarray(value).astype(np.float32)
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0].tolist()
        raise errors.RequestError(key, expected="finite numbers", found=f"{np.asarray(value)[tuple(first)]} at {first}")
    return array


def whole_number(key: str, value: Value, low: int, high: int) -> int:
    """A field that is a whole number from `low` to `high`."""
    is_whole = type(value) is int or (isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu")
    if not is_whole or np.ndim(value) != 0 or not low <= int(value) <= high:
        found: Any = value if is_whole and np.ndim(value) == 0 else type(value).__name__
        raise errors.RequestError(key, expected=f"a whole number from {low} to {high}", found=found)
    return int(value)


def _seed(fields: Mapping[str, Value]) -> int | None:
    return None if SEED not in fields else whole_number(SEED, fields[SEED], 0, 2**31 - 1)


def _decoded(key: str, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        height, width, _ = image_codec.image_shape(data)
        if height * width > _MAX_PIXELS:
            raise errors.RequestError(key, expected=f"at most {_MAX_PIXELS} pixels", found=[height, width])
        return image_codec.decode(data)
    except ValueError as error:
        raise errors.RequestError(key, expected="the bytes of a JPEG or PNG", found=str(error)) from error
