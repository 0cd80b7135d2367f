"""Films of episodes as bytes that a page can hold: H.264 in MP4, or an animated WebP or GIF without ffmpeg."""

import base64
import dataclasses
import io
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla_jax.core import errors
from vla_jax.evaluation.rollouts import Recording

Format = Literal["mp4", "webp", "gif"]
_MEDIA_TYPES = {"mp4": "video/mp4", "webp": "image/webp", "gif": "image/gif"}
_QUALITY = 26  # x264's constant rate factor: below 20 the file doubles and a 256-pixel film looks the same


@dataclasses.dataclass(frozen=True)
class Clip:
    """One encoded film."""

    data: bytes
    media_type: str  # "video/mp4", "image/webp" or "image/gif"
    width: int
    height: int

    @property
    def data_uri(self) -> str:
        """The film as a `src` that needs no other file."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def upscale(frames: UInt8[np.ndarray, "*n h w 3"], size: int = 256) -> UInt8[np.ndarray, "*n h2 w2 3"]:
    """Repeat pixels by the whole factor that brings the shorter side nearest to `size`; never shrinks."""
    factor = max(1, round(size / min(frames.shape[-3:-1])))
    return np.repeat(np.repeat(frames, factor, axis=-3), factor, axis=-2)


def encode(
    frames: UInt8[np.ndarray, "time h w 3"],
    frames_per_second: float,
    *,
    size: int = 256,
    hold_seconds: float = 0.8,
    format: Format | None = None,
) -> Clip:
    """Upscale and encode one film. The last frame is held, so that a looping film shows how the episode ended.

    Without a `format` it is MP4 where ffmpeg is found and WebP elsewhere. Raises DataError for anything but a
    non-empty uint8 film.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise errors.DataError("film", expected="uint8 [time, h, w, 3]", found=f"{frames.dtype} {list(frames.shape)}")
    held = np.repeat(frames[-1:], round(hold_seconds * frames_per_second), axis=0)
    frames = _even(upscale(np.concatenate([frames, held]), size))
    format = format or ("mp4" if has_ffmpeg() else "webp")
    data = _mp4(frames, frames_per_second) if format == "mp4" else _animated(frames, frames_per_second, format)
    return Clip(data, _MEDIA_TYPES[format], width=frames.shape[2], height=frames.shape[1])


def clips(recording: Recording, frames_per_second: float, *, size: int = 256) -> tuple[Clip, ...]:
    """One clip per recorded episode, cut where the episode ended."""
    films = zip(np.asarray(recording.frames), np.asarray(recording.num_frames), strict=True)
    return tuple(encode(frames[:length], frames_per_second, size=size) for frames, length in films)


def has_ffmpeg() -> bool:
    """Whether an ffmpeg binary is bundled or on the path."""
    try:
        return bool(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:  # how imageio_ffmpeg says that it found none
        return False


def _mp4(frames: UInt8[np.ndarray, "time h w 3"], frames_per_second: float) -> bytes:
    height, width = frames.shape[1:3]
    # imageio_ffmpeg's own writer forks with a preexec function, which can deadlock beside JAX's threads
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {frames_per_second:g} -i -"
    # yuv420p is what every browser plays; faststart puts the index in front of the data
    sink = f"-an -c:v libx264 -pix_fmt yuv420p -crf {_QUALITY} -preset slow -threads 1 -movflags +faststart"
    with tempfile.TemporaryDirectory() as folder:  # MP4 needs a seekable output, a pipe is none
        path = Path(folder) / "film.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source.split(), *sink.split(), str(path)]
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
        if done.returncode:
            raise errors.DataError(
                f"ffmpeg could not encode a film of {list(frames.shape)}",
                found=done.stderr.decode(errors="replace").strip()[-500:],
                fix='pass format="webp", or another ffmpeg in $IMAGEIO_FFMPEG_EXE',
            )
        return path.read_bytes()


def _animated(frames: UInt8[np.ndarray, "time h w 3"], frames_per_second: float, format: str) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    duration = round(1000 / frames_per_second)  # milliseconds
    images[0].save(buffer, format.upper(), save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()


def _even(frames: UInt8[np.ndarray, "time h w 3"]) -> UInt8[np.ndarray, "time h2 w2 3"]:
    """Repeat the last row or column of an odd side: 4:2:0 colour has one sample per 2 x 2 pixels."""
    return np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
