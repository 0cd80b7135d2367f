"""Pictures of many episodes encoded into video files of a limited size, one episode after the other in each."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from vla_jax.core import errors
from vla_jax.data.formats.lerobot_extra import av

Codec = Literal["h264", "av1"]
_ENCODERS = {"h264": "libx264", "av1": "libsvtav1"}
# No B-frames: a decoder that starts at a keyframe then gives its first picture at once.
_OPTIONS = {"h264": {"preset": "fast", "bf": "0", "sc_threshold": "0"}, "av1": {"preset": "8"}}


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """How pictures are encoded, always as yuv420p."""

    codec: Codec = "h264"  # av1 is half the size and takes longer to encode
    crf: int = 20  # 0 to 51 (h264) or 63 (av1), smaller is better
    keyframe_interval: int = 2  # frames; at 2, as in lerobot, any frame is one or two decodings away
    max_file_bytes: int = 200 << 20

    def __post_init__(self):
        if self.codec not in _ENCODERS:
            raise errors.ConfigError("VideoConfig.codec", expected=", ".join(_ENCODERS), found=repr(self.codec))
        if self.keyframe_interval < 1 or not 0 <= self.crf <= 63:
            raise errors.ConfigError(
                "VideoConfig.keyframe_interval, crf",
                expected="at least 1, and 0 to 63",
                found=(self.keyframe_interval, self.crf),
            )


@dataclasses.dataclass(frozen=True)
class Clip:
    """Where an episode lies: the number of its file, and from when to when in it, in seconds."""

    file: int
    start: float
    stop: float


class VideoFiles:
    """The videos of one camera, opened and closed as they fill up. A file may be a little larger than the limit."""

    def __init__(
        self,
        path: Callable[[int], Path],
        shape: tuple[int, int, int],
        fps: float,
        config: VideoConfig,
        first_file: int = 0,
    ):
        """`path` names the files by their number, from `first_file` on. Raises ConfigError when the size or the codec
        cannot be encoded."""
        if shape[0] % 2 or shape[1] % 2:
            raise errors.ConfigError(
                f"{path(0)}: the size of the pictures",
                expected="even height and width, as yuv420p needs them",
                found=list(shape[:2]),
                fix="resize the pictures, or keep them in parquet",
            )
        try:
            av.codec.Codec(_ENCODERS[config.codec], "w")
        except av.codec.codec.UnknownCodecError as error:
            raise errors.ConfigError(
                f"VideoConfig.codec={config.codec}", found=f"this PyAV has no {_ENCODERS[config.codec]}"
            ) from error
        self._path, self._shape, self._config = path, shape, config
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container: av.container.OutputContainer | None = None
        self._file = first_file - 1
        self._frames = 0
        self._bytes = 0

    def write(self, pictures: Iterable[UInt8[np.ndarray, "height width 3"]]) -> Clip:
        """Append the pictures of one episode."""
        if self._container is None or self.is_full:
            self._open()
        first = self._frames
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = self._frames, 1 / self._rate
            self._mux(self._stream.encode(frame))
            self._frames += 1
        return Clip(self._file, float(first / self._rate), float(self._frames / self._rate))

    @property
    def is_full(self) -> bool:
        """Whether the next episode goes into another file."""
        return self._container is not None and self._bytes >= self._config.max_file_bytes

    def close(self) -> None:
        if self._container is not None:
            self._mux(self._stream.encode(None))
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self.close()
        self._file += 1
        self._frames = self._bytes = 0
        path = self._path(self._file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        options = {**_OPTIONS[self._config.codec], "crf": str(self._config.crf)}
        self._stream = self._container.add_stream(_ENCODERS[self._config.codec], rate=self._rate, options=options)
        self._stream.height, self._stream.width = self._shape[:2]
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = self._config.keyframe_interval
        self._stream.codec_context.time_base = 1 / self._rate
        with ordinary_priority():
            self._stream.codec_context.open()

    def _mux(self, packets: list) -> None:
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Around the opening of an encoder: every thread of this process keeps the scheduling it had, and new ones get it.

    SVT-AV1, run by root, gives the calling thread and its own the highest real-time priority and leaves it at that.
    Other threads then get no turn while that one has something to do, for ever where it spins until they did theirs.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux: nothing to undo
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    before = {thread: os.sched_getscheduler(thread) for thread in _threads()}
    try:
        yield
    finally:
        for thread in _threads():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                if os.sched_getscheduler(thread) != before.get(thread, policy):
                    os.sched_setscheduler(thread, policy, priority)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]
