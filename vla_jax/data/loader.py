"""The loader: datasets in, the same endless stream of batches out, for any number of processes and after any resume.

Batch `step` of a run is a pure function of the seed and `step`. Process `i` of `n` gets rows `[i * b / n, (i + 1) * b
/ n)` of the global batch, so laying the processes' batches end to end gives the global batch whatever `n` is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations
from vla_jax.data.demonstrations import DemonstrationDataset, Tokenizer
from vla_jax.data.normalization import Normalizer
from vla_jax.data.order import GlobalOrder
from vla_jax.data.schema import DatasetConfig


class Loader(Iterator[Demonstrations]):
    """An endless iterator of batches with numpy leaves; weights are ones.

    Threads prepare the next batches: JPEG decoding leaves the interpreter lock, and measured against worker processes
    threads gave more frames per cpu-second.
    """

    def __init__(
        self,
        datasets: DatasetConfig | Sequence[DatasetConfig],
        *,
        batch_size: int,
        seed: int,
        tokenizer: Tokenizer,
        normalizer: Normalizer,
        weights: Sequence[float] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        start_step: int = 0,
        image_cache_bytes: int = 2 << 30,
        cache_folder: str | Path | None = None,
    ):
        """`batch_size` is the global one. `weights` are the fractions of a mixture, by default in proportion to the
        frames. All datasets of a mixture share the normalizer, the camera names and the image sizes.

        Raises DataError when a dataset lacks what its config asks for, ConfigError for values that cannot work.
        """
        configs = [datasets] if isinstance(datasets, DatasetConfig) else list(datasets)
        _check_sizes(configs, batch_size, process_index, process_count, num_threads, start_step)
        self.datasets = [
            DemonstrationDataset(
                config,
                normalizer,
                tokenizer,
                image_cache_bytes=image_cache_bytes // len(configs),
                cache_folder=cache_folder,
            )
            for config in configs
        ]
        self._order = GlobalOrder([dataset.num_frames for dataset in self.datasets], seed, weights)
        self._batch_size, self._rows = batch_size, batch_size // process_count
        self._first_row = process_index * self._rows
        self._num_threads = num_threads
        self._step = start_step
        self._batches: grain.DatasetIterator | None = None
        self._check_mixture()

    @property
    def num_frames(self) -> int:
        return sum(dataset.num_frames for dataset in self.datasets)

    def batch(self, step: int) -> Demonstrations:
        """This process's rows of global batch `step`, made on the spot."""
        start = step * self._batch_size + self._first_row
        numbers, frames = self._order(start, start + self._rows)
        if len(self.datasets) == 1:
            return self.datasets[0].batch(frames)
        parts, rows = [], []
        for number, dataset in enumerate(self.datasets):
            chosen = np.flatnonzero(numbers == number)
            if len(chosen):
                parts.append(dataset.batch(frames[chosen]))
                rows.append(chosen)
        back = np.argsort(np.concatenate(rows))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)

    def example(self) -> Demonstrations:
        """A batch of the right shapes for initialization; the stream does not advance."""
        return self.batch(0)

    def __next__(self) -> Demonstrations:
        if self._batches is None:
            options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=2 * self._num_threads)
            self._batches = iter(grain.MapDataset.source(_Steps(self)).to_iter_dataset(options))
            self._batches.set_state({"next_index": self._step})
        batch = next(self._batches)
        self._step += 1
        return batch

    def state(self) -> dict[str, int]:
        """All that resuming needs: how many batches were handed out. The same on every process."""
        return {"step": self._step}

    def restore(self, state: dict[str, int]) -> None:
        """Continue as if `state["step"]` batches had been handed out, on any number of processes."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stop the threads; the next call of `next` starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _check_mixture(self) -> None:
        if len(self.datasets) > 1:
            shapes = [_shapes(dataset.batch(np.zeros(1, np.int64))) for dataset in self.datasets]
            for dataset, found in zip(self.datasets, shapes, strict=True):
                if found != shapes[0]:
                    raise errors.ConfigError(
                        f"{dataset.config.path} cannot be mixed with {self.datasets[0].config.path}",
                        expected=shapes[0],
                        found=found,
                        fix="use the same camera names, image sizes, action_horizon and action_dim",
                    )


class _Steps:
    """The endless sequence of batches as grain wants a source: random access and a length."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def __len__(self) -> int:
        return 2**48  # more steps than any run

    def __getitem__(self, step: int) -> Demonstrations:
        return self._loader.batch(step)


def _shapes(batch: Demonstrations) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}


def _check_sizes(
    configs: Sequence[DatasetConfig],
    batch_size: int,
    process_index: int,
    process_count: int,
    num_threads: int,
    start_step: int,
) -> None:
    if not configs:
        raise errors.ConfigError("Loader.datasets", expected="at least one", found="none")
    if not 0 <= process_index < process_count:
        raise errors.ConfigError("Loader.process_index", expected=f"0 to {process_count - 1}", found=process_index)
    if batch_size < 1 or batch_size % process_count:
        raise errors.ConfigError(
            "Loader.batch_size", expected=f"a positive multiple of {process_count} processes", found=batch_size
        )
    if num_threads < 1 or start_step < 0:
        raise errors.ConfigError(
            "Loader", expected="num_threads of 1 or more, start_step of 0 or more", found=(num_threads, start_step)
        )
