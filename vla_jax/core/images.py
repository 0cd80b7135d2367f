"""Pictures as arrays, on the host and inside a jit alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from vla_jax.core import errors
from vla_jax.core.types import Observation


def average_blocks(images: UInt8[Array, "*b h w 3"], factor: int) -> UInt8[Array, "*b h/f w/f 3"]:
    """Blocks of `factor` x `factor` pixels become one, rounded to the nearest level; numpy in, numpy out.

    Integer arithmetic, so that recorded pictures and those a policy meets shrink to the same bytes. Raises ConfigError
    when the factor does not divide the size.
    """
    *batch, height, width, channels = images.shape
    if factor < 1 or height % factor or width % factor:
        raise errors.ConfigError(
            "averaging blocks of pixels", expected=f"a factor that divides {height} x {width}", found=factor
        )
    if factor == 1:
        return images
    blocks = images.reshape(*batch, height // factor, factor, width // factor, factor, channels)
    total = blocks.astype("uint32").sum(axis=(-4, -2), dtype="uint32")
    return ((total + factor * factor // 2) // (factor * factor)).astype("uint8")


def random_crop(key: Key[Array, ""], images: UInt8[Array, "b h w 3"], pad: int) -> UInt8[Array, "b h w 3"]:
    """Every picture moved by up to `pad` pixels each way, on its own, its border repeated. Source: DrQ (2004.13649)."""
    if pad == 0:
        return images
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * pad + 1)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])  # noqa: E731
    return jax.vmap(crop)(padded, corners)


def crop_observation(key: Key[Array, ""], observation: Observation, pad: int) -> Observation:
    """All cameras of a batch, each with draws of its own; leading axes may be several."""

    def cropped(number: int, images: UInt8[Array, "*b h w 3"]) -> UInt8[Array, "*b h w 3"]:
        flat = images.reshape(-1, *images.shape[-3:])
        return random_crop(jax.random.fold_in(key, number), flat, pad).reshape(images.shape)

    cameras = sorted(observation.images.items())
    return observation.replace(images={name: cropped(i, images) for i, (name, images) in enumerate(cameras)})
