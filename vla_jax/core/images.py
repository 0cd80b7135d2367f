"""Pictures as arrays, on the host and inside a jit alike."""

from jaxtyping import Array, UInt8

from vla_jax.core import errors


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
