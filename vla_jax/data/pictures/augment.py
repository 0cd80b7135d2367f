"""Random changes of pictures during training, on the device and inside the jit: uint8 in, uint8 out.

    rotate and crop  ->  brightness  ->  contrast  ->  saturation  ->  hue

Every sample draws its own strengths, once for all frames of its history; cameras draw apart. What a config leaves at
zero costs nothing, and a config of zeros gives back the very arrays.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Observation, Transitions

Batch = TypeVar("Batch", Demonstrations, Transitions)
Picture = Float[Array, "height width 3"]  # in [0, 1]

# Luma and two chroma axes in which hue is an angle (YIQ), rows to columns of RGB.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
# A turn by `angle` about the grey axis, transposed: the sum of these, times 1, cos(angle) and sin(angle).
_HUE_PARTS = tuple(
    (np.linalg.inv(_TO_YIQ) @ np.array(part) @ _TO_YIQ).T
    for part in (
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
    )
)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How far pictures may change; each amount is drawn uniformly up to the one given."""

    shift: int = 0  # pixels up, down, left or right; the border is repeated (pad and crop)
    crop: float = 1.0  # the smallest part of each side that is kept and scaled back to the whole; 1 keeps all
    rotation: float = 0.0  # degrees either way
    brightness: float = 0.0  # a factor from 1 - brightness to 1 + brightness
    contrast: float = 0.0  # likewise, of the distance from the picture's mean grey
    saturation: float = 0.0  # likewise, of the distance from grey
    hue: float = 0.0  # turns of the colour wheel either way, at most 0.5
    colour_only: tuple[str, ...] = ("wrist",)  # cameras that are neither shifted, cropped nor rotated: their frame
    # moves with the hand, and where things are in it is what they tell

    def __post_init__(self):
        limits = {"rotation": 180.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise errors.ConfigError(f"AugmentConfig.{name}", expected=f"0 to {most}", found=getattr(self, name))
        if not 0 < self.crop <= 1:
            raise errors.ConfigError("AugmentConfig.crop", expected="a fraction in (0, 1]", found=self.crop)
        if self.shift < 0:
            raise errors.ConfigError("AugmentConfig.shift", expected="0 or more pixels", found=self.shift)


def augment_batch(key: Key[Array, ""], batch: Batch, config: AugmentConfig) -> Batch:
    """The batch with every picture changed; observations of one sample (now, next, future, goal) draw apart."""
    names = ("observation", "next_observation", "future", "goal")
    seen = {name: getattr(batch, name) for name in names if isinstance(getattr(batch, name, None), Observation)}
    split = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    return batch.replace(**{name: augment(split[name], value, config) for name, value in seen.items()})


def augment(key: Key[Array, ""], observation: Observation, config: AugmentConfig) -> Observation:
    """The observation with its pictures changed. Pictures are `b height width 3`, or `b t height width 3` with a
    history; sample `i` draws from `split(key, b)[i]`, folded with the number of the camera in alphabetical order."""
    images = dict(observation.images)
    for number, (camera, pictures) in enumerate(sorted(observation.images.items())):
        sample_keys = jax.random.split(jax.random.fold_in(key, number), pictures.shape[0])
        moves = camera not in config.colour_only
        if _changes(config, moves):
            images[camera] = jax.vmap(lambda k, p, moves=moves: augment_frames(k, p, config, moves=moves))(
                sample_keys, pictures
            )
    return observation.replace(images=images)


def augment_frames(
    key: Key[Array, ""], pictures: UInt8[Array, "*t height width 3"], config: AugmentConfig, *, moves: bool = True
) -> UInt8[Array, "*t height width 3"]:
    """One sample's frames of one camera, all changed alike. `moves` says whether things may change their place."""
    if not _changes(config, moves):
        return pictures
    frames = pictures.reshape(-1, *pictures.shape[-3:]).astype(jnp.float32) / 255.0
    move_key, colour_key = jax.random.split(key)
    if moves:
        frames = _move(move_key, frames, config)
    frames = _colour(colour_key, frames, config)
    return jnp.round(jnp.clip(frames, 0.0, 1.0) * 255.0).astype(jnp.uint8).reshape(pictures.shape)


def _changes(config: AugmentConfig, moves: bool) -> bool:
    colour = config.brightness or config.contrast or config.saturation or config.hue
    return bool(colour or (moves and (config.shift or config.rotation or config.crop < 1)))


def _move(key: Key[Array, ""], frames: Float[Array, "t h w 3"], config: AugmentConfig) -> Float[Array, "t h w 3"]:
    shift_key, crop_key, place_key, angle_key = jax.random.split(key, 4)
    height, width = frames.shape[1:3]
    if config.shift:
        pad = config.shift
        padded = jnp.pad(frames, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
        top, left = jax.random.randint(shift_key, (2,), 0, 2 * pad + 1)
        frames = jax.lax.dynamic_slice(padded, (0, top, left, 0), frames.shape)
    if config.crop < 1 or config.rotation:
        scale = jax.random.uniform(crop_key, minval=config.crop, maxval=1.0) if config.crop < 1 else 1.0
        place = jax.random.uniform(place_key, (2,), minval=-0.5, maxval=0.5)  # of the kept part in what is left
        angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-config.rotation, maxval=config.rotation))
        frames = _sample(frames, scale, place[0] * (1 - scale) * height, place[1] * (1 - scale) * width, angle)
    return frames


def _sample(frames: Float[Array, "t h w 3"], scale: Array, down: Array, right: Array, angle: Array) -> Array:
    """The frames turned by `angle` about, and scaled from, the point `down` and `right` of the centre; bilinear, the
    border repeated."""
    height, width = frames.shape[1:3]
    row = jnp.arange(height)[:, None] - (height - 1) / 2
    column = jnp.arange(width)[None, :] - (width - 1) / 2
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    from_row = jnp.clip(cos * row - sin * column + (height - 1) / 2 + down, 0, height - 1)
    from_column = jnp.clip(sin * row + cos * column + (width - 1) / 2 + right, 0, width - 1)
    top = jnp.clip(jnp.floor(from_row).astype(jnp.int32), 0, height - 2) if height > 1 else jnp.zeros_like(row, int)
    left = jnp.clip(jnp.floor(from_column).astype(jnp.int32), 0, width - 2)
    below, beside = (from_row - top)[None, ..., None], (from_column - left)[None, ..., None]
    upper = frames[:, top, left] * (1 - beside) + frames[:, top, left + 1] * beside
    lower = frames[:, top + 1, left] * (1 - beside) + frames[:, top + 1, left + 1] * beside
    return upper * (1 - below) + lower * below


def _colour(key: Key[Array, ""], frames: Float[Array, "t h w 3"], config: AugmentConfig) -> Float[Array, "t h w 3"]:
    brightness, contrast, saturation, hue = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    if config.brightness:
        frames = frames * (1 + brightness * config.brightness)
    if config.contrast:
        mean = _grey(frames).mean(axis=(1, 2, 3), keepdims=True)
        frames = mean + (frames - mean) * (1 + contrast * config.contrast)
    if config.saturation:
        grey = _grey(frames)
        frames = grey + (frames - grey) * (1 + saturation * config.saturation)
    if config.hue:
        frames = frames @ _hue_matrix(hue * config.hue)
    return frames


def _grey(frames: Float[Array, "t h w 3"]) -> Float[Array, "t h w 1"]:
    """Luma, as PIL and ITU-R 601 weigh colours."""
    return frames @ jnp.asarray(_TO_YIQ[0], jnp.float32)[:, None]


def _hue_matrix(turns: Float[Array, ""]) -> Float[Array, "3 3"]:
    """Turns chroma about the grey axis; grey stays and so does luma. Unlike a turn in HSV it is one matrix, and
    brightness as the eye sees it does not jump."""
    cos, sin = jnp.cos(2 * jnp.pi * turns), jnp.sin(2 * jnp.pi * turns)
    keep, along, across = (jnp.asarray(matrix, jnp.float32) for matrix in _HUE_PARTS)
    return keep + cos * along + sin * across
