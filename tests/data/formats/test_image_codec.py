import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_jax.core import images
from vla_jax.data.formats import image_codec


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth colours with a few hard edges."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([127 + 100 * np.sin(x / 20), 127 + 100 * np.cos(y / 15), (x + y) * 2], -1).astype(np.uint8)
    out[10:20, 5:30], out[30:41, 33:50] = (250, 10, 10), (0, 200, 255)
    return out


def encode(array: np.ndarray, subsampling: str = "420") -> bytes:
    return simplejpeg.encode_jpeg(array, quality=95, colorspace="RGB", colorsubsampling=subsampling)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("subsampling", ["444", "420", "422"])
def test_a_jpeg_decodes_as_pil_does(subsampling):
    data = encode(picture(), subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    out = np.empty_like(expected)
    np.testing.assert_array_equal(image_codec.decode(data), expected)
    assert image_codec.decode(data, out) is not None
    np.testing.assert_array_equal(out, expected)
    assert image_codec.image_shape(data) == (48, 64, 3)


def test_a_png_is_exact_and_grey_becomes_rgb():
    np.testing.assert_array_equal(image_codec.decode(png(picture())), picture())
    out = np.empty((48, 64, 3), np.uint8)
    image_codec.decode(png(picture()[..., 0]), out)
    np.testing.assert_array_equal(out, np.repeat(picture()[..., :1], 3, axis=2))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_scaled_jpeg_is_near_its_block_averages(scale):
    data = encode(picture(), "444")
    out = np.empty((48 // scale, 64 // scale, 3), np.uint8)
    image_codec.decode(data, out, scale)
    np.testing.assert_array_equal(image_codec.decode(data, scale=scale), out)
    # A decoder that dropped the scale, or took every nth pixel, is off by 100 levels at the edges.
    averages = images.average_blocks(image_codec.decode(data), scale)
    assert np.abs(out.astype(int) - averages.astype(int)).max() <= 5


@pytest.mark.parametrize(
    ("data", "out", "scale", "message"),
    [
        (encode(picture()), np.empty((24, 64, 3), np.uint8), 1, r"shape \[48, 64, 3\] where the others"),
        (encode(picture()), np.empty((64, 48, 3), np.uint8), 1, r"shape \[48, 64, 3\] where the others"),
        (encode(picture()), np.empty((96, 128, 3), np.uint8), 1, r"shape \[48, 64, 3\] where the others"),
        (encode(picture(50, 64)), None, 4, "50 x 64 cannot be scaled by 1/4"),
        (encode(picture()), None, 3, "cannot be scaled by 1/3"),
        (png(picture()), None, 2, "only a JPEG"),
        (encode(picture())[:-40], None, 1, "Premature end"),
        # A header that lies: 65,328 x 65,344 pixels would be 12 GB.
        (encode(picture()).replace(b"\x08\x00\x30\x00\x40", b"\x08\xff\x30\xff\x40"), picture(), 1, "65328, 65344"),
        (b"no picture", None, 1, "cannot identify"),
        (b"", None, 1, "cannot identify"),
    ],
)
def test_what_cannot_be_decoded_is_a_value_error(data, out, scale, message):
    with pytest.raises(ValueError, match=message):
        image_codec.decode(data, out, scale)


@given(
    is_png=st.booleans(),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
    cut=st.integers(0, 10**6) | st.none(),
)
@settings(max_examples=300, deadline=None)
def test_damage_of_any_byte_is_a_picture_or_a_value_error(is_png, position, value, cut):
    data = bytearray(png(picture(16, 24)) if is_png else encode(picture(16, 24)))
    data[position % len(data)] = value
    data = bytes(data[: cut % len(data)] if cut is not None else data)
    out = np.empty((16, 24, 3), np.uint8)
    try:
        image_codec.decode(data, out)
    except ValueError:
        return
    assert data  # an empty string is never a picture
