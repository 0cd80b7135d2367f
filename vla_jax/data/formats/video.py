"""Single frames out of video files, exactly: the frame shown at a time, whatever the keyframes and their order.

    reader = VideoReader()
    failures = reader.read(path, times, out, rows)   # out[rows[i]] becomes the frame shown at times[i]

A decoder can only start at a keyframe. For times in ascending order the reader goes on decoding from the last frame, or
jumps to the nearest keyframe before the wanted one where that is nearer. Files stay open, a few per thread.
"""

import collections
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vla_jax.data.formats.lerobot_extra import av

_WORTH_A_JUMP = 3  # frames: up to here decoding on is cheaper than emptying the decoder and starting at a keyframe


class VideoError(Exception):
    """A file cannot be opened as a video."""


class VideoReader:
    """Reads frames of any number of files; every thread has decoders of its own, so threads may share a reader."""

    def __init__(self, max_open: int = 8):
        """At most `max_open` files stay open per thread; a decoder of 640x480 holds about 10 MB."""
        self._max_open = max_open
        self._local = threading.local()

    def read(
        self,
        path: Path,
        times: Float64[np.ndarray, "n"],
        out: Sequence[UInt8[np.ndarray, "height width 3"]],
        rows: Int64[np.ndarray, "n"],
    ) -> dict[int, str]:
        """Decode the frame shown at each of `times` (seconds) as RGB into its row of `out`, in the order of time.

        Returns why, for every row that could not be had; such a row is left as it was. A time further than half a frame
        from every frame of the file is a failure. Raises VideoError when the file cannot be opened at all.
        """
        failures: dict[int, str] = {}
        previous: int | None = None  # the row that holds the frame decoded last
        for i in np.argsort(times, kind="stable"):
            row = int(rows[i])
            try:
                video = self._open(path)
                is_new = video.go_to(float(times[i]))
                if is_new or previous is None:
                    video.write_frame(out[row])
                else:
                    out[row][...] = out[previous]
                previous = row
            except (av.FFmpegError, ValueError) as error:
                failures[row] = str(error)
                previous = None
                self._files().pop(path, None)  # a decoder that has failed is not used again
        return failures

    def shape(self, path: Path) -> tuple[int, int, int]:
        """Height, width and 3. Raises VideoError."""
        return self._open(path).shape

    def _files(self) -> "collections.OrderedDict[Path, _OpenVideo]":
        if not hasattr(self._local, "files"):
            self._local.files = collections.OrderedDict()
        return self._local.files

    def _open(self, path: Path) -> "_OpenVideo":
        files = self._files()
        if path not in files:
            files[path] = _OpenVideo(path)
            if len(files) > self._max_open:
                files.popitem(last=False)[1].close()
        files.move_to_end(path)
        return files[path]


class _OpenVideo:
    """One decoder and the frame it is at. Times inside are in units of the stream's time base."""

    def __init__(self, path: Path):
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise VideoError(f"{path}: {error or 'no video stream'}") from error
        self._stream.codec_context.thread_count = 1  # the callers are threads already
        self._base = self._stream.time_base
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(30)
        self._interval = float(1 / (rate * self._base))
        self._keys = np.array([e.timestamp for e in self._stream.index_entries if e.is_keyframe], np.int64)
        self._packets = iter(())
        self._decoded: collections.deque[av.VideoFrame] = collections.deque()
        self._frame: av.VideoFrame | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._stream.height, self._stream.width, 3

    def close(self) -> None:
        self._frame = None
        self._decoded.clear()
        self._container.close()

    def go_to(self, time: float) -> bool:
        """Decode up to the frame shown at `time`; False when the decoder is at it already. Raises ValueError."""
        target = time / float(self._base)
        before = self._frame
        if before is not None and abs(before.pts - target) <= self._interval / 2:
            return False
        if before is None or before.pts > target or self._is_jump_shorter(before.pts, target):
            self._jump(target)
        while self._frame is None or self._frame.pts < target - self._interval / 2:
            self._advance(time)
        if self._frame.pts > target + self._interval / 2:
            raise ValueError(f"no frame at {time:.4f} s, the next is at {self._frame.pts * self._base} s")
        if self._frame.is_corrupt:
            raise ValueError(f"the frame at {time:.4f} s is damaged")
        return True

    def write_frame(self, out: UInt8[np.ndarray, "height width 3"]) -> None:
        """The frame as RGB. Raises ValueError when it has another size."""
        height, width = self._frame.height, self._frame.width
        if (height, width) != out.shape[:2]:
            raise ValueError(f"a frame of {height}x{width} where {out.shape[0]}x{out.shape[1]} is expected")
        plane = self._frame.reformat(format="rgb24").planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)  # a line may be padded
        out[...] = lines[:, : 3 * width].reshape(height, width, 3)

    def _is_jump_shorter(self, here: int, target: float) -> bool:
        key = int(np.searchsorted(self._keys, target, side="right")) - 1
        return key >= 0 and (self._keys[key] - here) / self._interval > _WORTH_A_JUMP

    def _jump(self, target: float) -> None:
        """Stand before the keyframe from which the frame at `target` can be decoded.

        Containers are searched by decoding time, and with B-frames a keyframe may be decoded before but shown after the
        target: then an earlier one is needed.
        """
        position = int(target + self._interval / 2)
        while True:
            self._frame = None
            self._decoded.clear()
            self._container.seek(position, stream=self._stream)
            self._packets = self._container.demux(self._stream)
            first = next(self._packets)
            if first.pts is None:
                raise ValueError("the video holds no frames there")
            earlier = self._keys[self._keys < first.dts]
            if first.pts <= target + self._interval / 2 or not earlier.size:
                break
            position = int(earlier[-1])
        self._decoded.extend(first.decode())

    def _advance(self, time: float) -> None:
        while not self._decoded:
            packet = next(self._packets, None)
            if packet is None:
                raise ValueError(f"the video ends before {time:.4f} s")
            self._decoded.extend(packet.decode())
        frame = self._decoded.popleft()
        if frame.pts is not None:
            self._frame = frame
