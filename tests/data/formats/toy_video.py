"""Small videos whose frames all differ."""

from fractions import Fraction

import av
import numpy as np

from vla_jax.data.formats.video_writer import ordinary_priority

HEIGHT, WIDTH, RATE = 48, 64, 30


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, 48, 64, 3]: a coarse random pattern per frame, so that no frame passes for its neighbour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def write_video(path, frames, codec="libx264", keyframe_interval=10, b_frames=0, options=None, rate=RATE):
    settings = {"libx264": {"crf": "18", "bf": str(b_frames), "sc_threshold": "0"}, "libsvtav1": {"crf": "30"}}[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={**settings, **(options or {})})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "yuv420p", keyframe_interval
        stream.codec_context.time_base = Fraction(1, rate)
        with ordinary_priority():
            stream.codec_context.open()
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decode_in_order(path) -> np.ndarray:
    """Every frame from the first to the last, without any seeking: what exact access must give."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
