"""Small LeRobot datasets with known numbers: v3.0 by our writer, v2.1 laid out by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.formats.toy_video import HEIGHT, WIDTH, pictures, write_video
from vla_jax.data.formats.lerobot_writer import LeRobotWriter, LeRobotWriterConfig
from vla_jax.data.formats.specs import Episode, FeatureSpec
from vla_jax.data.formats.video_writer import VideoConfig

FPS = 10
LENGTHS = (12, 1, 30, 7)
FRONT, WRIST = (HEIGHT, WIDTH, 3), (32, 16, 3)
SPECS = {
    spec.name: spec
    for spec in (
        FeatureSpec("observation/front", "image", FRONT, "uint8", True),
        FeatureSpec("observation/wrist", "image", WRIST, "uint8", True),
        FeatureSpec("observation/state", "tensor", (3,), "float32", True),
        FeatureSpec("observation/gripper", "tensor", (1,), "float32", True),
        FeatureSpec("observation/matrix", "tensor", (2, 3), "float32", True),
        FeatureSpec("action", "tensor", (4,), "float32", True),
        FeatureSpec("reward", "tensor", (), "float32", True),
        FeatureSpec("is_last", "tensor", (), "bool", True),
        FeatureSpec("count", "tensor", (2,), "int64", True),
        FeatureSpec("language_instruction", "text", (), "object", True),
        FeatureSpec("language_instruction_2", "text", (), "object", True),
        FeatureSpec("episode_metadata/file_path", "text", (), "object", False),
        FeatureSpec("episode_metadata/number", "tensor", (), "int32", False),
        FeatureSpec("episode_metadata/box", "tensor", (2, 2), "float32", False),
    )
}


def make_episode(number: int, num_steps: int) -> Episode:
    steps, rng = np.arange(num_steps), np.random.default_rng(number)
    front = pictures(num_steps, seed=number)
    return Episode(
        steps={
            "observation/front": front,
            "observation/wrist": front[:, : WRIST[0], : WRIST[1]],
            "observation/state": rng.normal(size=(num_steps, 3)).astype(np.float32),
            "observation/gripper": steps[:, None].astype(np.float32),
            "observation/matrix": rng.normal(size=(num_steps, 2, 3)).astype(np.float32),
            "action": (100 * number + steps[:, None] + 0.25 * np.arange(4)).astype(np.float32),
            "reward": steps.astype(np.float32),
            "is_last": steps == num_steps - 1,
            "count": np.stack([steps, -steps], axis=1),
            "language_instruction": f"task {number % 2}",
            "language_instruction_2": [f"phrase {number}.{step // 5}" for step in steps],
        },
        metadata={
            "episode_metadata/file_path": f"file {number}",
            "episode_metadata/number": number - 2,
            "episode_metadata/box": np.full((2, 2), number, np.float32),
        },
    )


EPISODES = [make_episode(number, length) for number, length in enumerate(LENGTHS)]


def write_v3(folder, kept="video", max_video_bytes=200 << 20, max_data_bytes=100 << 20, specs=SPECS, episodes=EPISODES):
    video = VideoConfig(crf=10, keyframe_interval=4, max_file_bytes=max_video_bytes)
    config = LeRobotWriterConfig(FPS, kept, video, max_data_file_bytes=max_data_bytes)
    with LeRobotWriter(folder, specs, config) as writer:
        for episode in episodes:
            writer.write(episode)
    return folder


def write_v2(folder, version="v2.1", splits=None):
    """One parquet file and one video per episode; state, action and one camera."""
    (folder / "meta").mkdir(parents=True)
    start = 0
    tasks, episode_lines = ["task 0", "task 1"], []
    for number, episode in enumerate(EPISODES):
        length, chunk = LENGTHS[number], f"chunk-{number // 2:03d}"  # two episodes per chunk
        steps = np.arange(length)
        table = {
            "observation.state": list(episode.steps["observation/state"]),
            "action": list(episode.steps["action"]),
            "next.done": episode.steps["is_last"],
            "timestamp": (steps / FPS).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": start + steps,
            "task_index": np.full(length, number % 2),
        }
        data = folder / "data" / chunk / f"episode_{number:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({k: pa.array(v) for k, v in table.items()}), data)
        video = folder / "videos" / chunk / "observation.images.front" / f"episode_{number:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, episode.steps["observation/front"], keyframe_interval=2, rate=FPS)
        episode_lines.append({"episode_index": number, "tasks": [tasks[number % 2]], "length": length})
        start += length
    features = {
        "observation.images.front": {"dtype": "video", "shape": list(FRONT), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [4], "names": {"motors": ["a", "b", "c", "d"]}},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    info = {
        "codebase_version": version,
        "robot_type": "toy",
        "fps": FPS,
        "chunks_size": 2,
        "splits": splits if splits is not None else {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    _write_lines(folder / "meta" / "episodes.jsonl", episode_lines)
    _write_lines(folder / "meta" / "tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    return folder


def _write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
