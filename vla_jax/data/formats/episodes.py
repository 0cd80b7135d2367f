"""What the pipeline asks of a set of episodes, whatever its format: columns in memory maps, pictures on demand."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from vla_jax.data.formats.faults import FaultLog
from vla_jax.data.formats.specs import Episode, FeatureSpec


@runtime_checkable
class EpisodeDataset(Protocol):
    """One split. Frames are numbered through all episodes; methods are safe to call from several threads.

    Names are those of `features.FeatureSpec`: `observation/front`, `action`, `language_instruction`.
    """

    faults: FaultLog  # what was skipped, at indexing and since

    @property
    def place(self) -> str:
        """The set and split, for messages."""
        ...

    @property
    def specs(self) -> Mapping[str, FeatureSpec]: ...

    def __len__(self) -> int:
        """Number of episodes."""
        ...

    @property
    def num_frames(self) -> int: ...

    @property
    def episode_starts(self) -> Int64[np.ndarray, "episodes_plus_one"]:
        """First frame of every episode, then the number of frames."""
        ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Tensors by name: `[frames, ...]` for step features, `[episodes, ...]` for episode features."""
        ...

    def texts(self, name: str) -> tuple[str, ...]:
        """The distinct strings of a text feature."""
        ...

    def text_ids(self, name: str) -> np.ndarray:
        """For every frame (or episode) its row in `texts(name)`."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]: ...

    def episode_of(self, frames: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]: ...

    def describe_frame(self, frame: int) -> str:
        """The file, episode and step of a frame, for an error."""
        ...

    def image_shape(self, name: str) -> tuple[int, int, int]:
        """Height, width and channels of a camera's stored pictures."""
        ...

    def read_images(
        self, frames: Int64[np.ndarray, "n"], name: str, out: Sequence[UInt8[np.ndarray, "height width 3"]]
    ) -> Bool[np.ndarray, "n"]:
        """Decode the picture of each frame into that of `out`: an array of pictures, or a list of any rows of a batch.

        False where one is absent, or damaged (the fault is logged); it becomes black. Raises DataError when `faults`
        does not tolerate it."""
        ...


def assemble(dataset: EpisodeDataset, specs: Mapping[str, FeatureSpec], i: int, pictures: Mapping[str, Any]) -> Episode:
    """Episode `i` with the numbers and texts of `specs`; the pictures of its steps are given, by name."""
    start, stop = map(int, dataset.episode_starts[i : i + 2])
    steps, metadata = dict(pictures), {}
    for name, spec in specs.items():
        if spec.kind == "image":
            continue
        rows = slice(start, stop) if spec.is_step else slice(i, i + 1)
        if spec.kind == "text":
            texts = dataset.texts(name)
            value = [texts[k] for k in dataset.text_ids(name)[rows]]
        else:
            value = np.array(dataset.columns[name][rows])
        if spec.is_step:
            steps[name] = value
        else:
            metadata[name] = value[0]
    return Episode(steps, metadata)
