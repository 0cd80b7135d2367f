"""A set of episodes that lives in memory: tests plant in it what they look for."""

import dataclasses

import numpy as np

from vla_jax.data.formats.faults import Fault, FaultLog
from vla_jax.data.formats.features import Episode, FeatureSpec, demonstration_flags, episode_features
from vla_jax.data.formats.rlds_writer import RldsWriter


@dataclasses.dataclass
class MemorySet:
    """An EpisodeDataset of given columns, texts (one per frame) and pictures; all of them may be replaced."""

    lengths: tuple[int, ...]
    columns: dict[str, np.ndarray]
    words: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [frames, h, w, 3]
    damaged: frozenset[int] = frozenset()  # frames whose pictures do not decode
    faults: FaultLog = dataclasses.field(default_factory=FaultLog)
    place: str = "memory, split train"

    @property
    def specs(self):
        features = [
            *(FeatureSpec(n, "tensor", c.shape[1:], c.dtype.name, self._is_step(c)) for n, c in self.columns.items()),
            *(FeatureSpec(n, "text", (), "object", len(w) == self.num_frames) for n, w in self.words.items()),
            *(FeatureSpec(n, "image", p.shape[1:], "uint8", True) for n, p in self.pictures.items()),
        ]
        return {spec.name: spec for spec in features}

    def __len__(self):
        return len(self.lengths)

    @property
    def num_frames(self):
        return sum(self.lengths)

    @property
    def episode_starts(self):
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def texts(self, name):
        return tuple(dict.fromkeys(self.words[name]))

    def text_ids(self, name):
        return np.array([self.texts(name).index(word) for word in self.words[name]])

    @property
    def cameras(self):
        return tuple(self.pictures)

    def episode_of(self, frames):
        return np.searchsorted(self.episode_starts, frames, side="right") - 1

    def describe_frame(self, frame):
        episode = int(self.episode_of(np.asarray(frame)))
        return f"memory, episode {episode}, step {frame - int(self.episode_starts[episode])}"

    def image_shape(self, name):
        return self.pictures[name].shape[1:]

    def read_images(self, frames, name, out):
        readable = np.array([int(frame) not in self.damaged for frame in frames], bool)
        for frame in frames[~readable]:
            self.faults.add(Fault("bad image", f"{self.describe_frame(int(frame))}, {name}", "planted"))
        for picture, frame, is_readable in zip(out, frames, readable, strict=True):
            picture[...] = self.pictures[name][frame] if is_readable else 0
        return readable

    def _is_step(self, column):
        return len(column) == self.num_frames


def clean_set(num_episodes=12, num_steps=60, seed=0) -> MemorySet:
    """A hand that follows delta actions with a gain of 0.05 and a little noise; the gripper (last dim, 1 closes) moves
    its finger (last state dim, 0.04 is open); two cameras see a moving pattern each."""
    rng = np.random.default_rng(seed)
    frames = num_episodes * num_steps
    actions = np.zeros((num_episodes, num_steps, 7))
    smooth = rng.normal(size=(num_episodes, num_steps + 8, 6)).cumsum(axis=1)
    actions[..., :6] = np.clip((smooth[:, 8:] - smooth[:, :-8]) / 6, -1, 1)  # steady for a few steps, then another way
    moved = 0.05 * actions[..., :6] + 0.003 * rng.normal(size=(num_episodes, num_steps, 6))
    states = np.zeros((num_episodes, num_steps, 7))
    states[..., :6] = np.cumsum(moved, axis=1) - moved + 0.2 * rng.normal(size=(num_episodes, 1, 6))
    closed = (np.arange(num_steps) // 15) % 2
    actions[..., 6] = 2 * closed - 1
    states[..., 6] = 0.04 * (1 - np.roll(closed, 1)) + 0.0005 * rng.normal(size=(num_episodes, num_steps))
    shift = (3 * np.arange(frames))[:, None, None, None]
    row, column = np.arange(12)[None, :, None, None], np.arange(16)[None, None, :, None]
    pictures = {
        "observation/front": np.broadcast_to((10 * row + 3 * shift) % 200 + 20, (frames, 12, 16, 3)).astype(np.uint8),
        "observation/wrist": np.broadcast_to((9 * column + 5 * shift) % 180 + 30, (frames, 12, 16, 3)).astype(np.uint8),
    }
    texts = ["pick up the red cube", "put the cup on the plate"]
    return MemorySet(
        lengths=(num_steps,) * num_episodes,
        columns={
            "observation/state": states.reshape(frames, 7).astype(np.float32),
            "action": actions.reshape(frames, 7).astype(np.float32),
        },
        words={"language_instruction": [texts[frame // num_steps % 2] for frame in range(frames)]},
        pictures=pictures,
    )


def write_rlds(dataset: MemorySet, folder):
    """The set of `clean_set` on disk, every episode with a reward of 1 at its end; returns the version folder."""
    sizes = {name.removeprefix("observation/"): dataset.image_shape(name)[:2] for name in dataset.cameras}
    widths = [dataset.columns[name].shape[1] for name in ("observation/state", "action")]
    with RldsWriter(folder, episode_features(sizes, *widths), "small") as writer:
        for start, stop in zip(dataset.episode_starts[:-1], dataset.episode_starts[1:], strict=True):
            arrays = {**dataset.pictures, **dataset.columns}
            steps = {name: array[start:stop] for name, array in arrays.items()}
            steps["language_instruction"] = dataset.words["language_instruction"][start]
            writer.write(Episode({**steps, **demonstration_flags(int(stop - start))}))
    return folder
