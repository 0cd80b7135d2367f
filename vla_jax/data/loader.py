"""The loader: datasets in, the same endless stream of batches out, for any number of processes and after any resume.

    grain: step, step + 1, ... -> positions -> (dataset, sample) -> frames -> rows of one batch, filled by threads

Batch `step` of a run is a pure function of the seed and `step`. Process `i` of `n` gets rows `[i * b / n, (i + 1) * b
/ n)` of the global batch, so laying the processes' batches end to end gives the global batch whatever `n` is.

A grain pipeline runs over the steps and begins batches ahead of time. Threads share out the rows of a batch, so a first
batch takes as long as its rows divided by the threads, and only about `PREFETCH` batches beside the one being trained
on are in memory, whatever the number of threads.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from vla_jax.core import errors
from vla_jax.core.types import Demonstrations, Transitions
from vla_jax.data.demonstrations import DEFAULT_IMAGE_CACHE_BYTES, DemonstrationDataset, FrameDataset
from vla_jax.data.formats.faults import Fault, FaultPolicy
from vla_jax.data.normalization import Normalizer
from vla_jax.data.observations import Tokenizer
from vla_jax.data.samples import draws
from vla_jax.data.samples.mixture import mixture_weights
from vla_jax.data.samples.order import GlobalOrder
from vla_jax.data.samples.splits import Subset
from vla_jax.data.schema import DatasetConfig
from vla_jax.data.transitions import TransitionDataset

PREFETCH = 2  # batches begun ahead of the one asked for
BATCH_TIMEOUT = 600.0  # seconds after which a batch that does not come is an error, such as a file system that hangs
_LAST_STEP = 2**48  # more than any run makes
_CLOSE_TIMEOUT = 10.0  # seconds for the rows that threads are filling


class Loader(Iterator[Demonstrations | Transitions]):
    """An endless iterator of batches with numpy leaves: Demonstrations, or Transitions where the configs say so.

    Threads prepare the next batches: JPEG decoding and copying leave the interpreter lock, and measured against worker
    processes threads gave more frames per cpu-second.
    """

    def __init__(
        self,
        datasets: DatasetConfig | Sequence[DatasetConfig],
        *,
        batch_size: int,
        seed: int,
        tokenizer: Tokenizer,
        normalizer: Normalizer | Sequence[Normalizer],
        weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        balance_embodiments: bool = False,
        subset: Subset | None = None,
        process_index: int = 0,
        process_count: int = 1,
        num_threads: int = 2,
        start_step: int = 0,
        image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
        cache_folder: str | Path | None = None,
        faults: FaultPolicy | None = None,
    ):
        """`batch_size` is the global one. `normalizer` is one for all datasets, or one for each.

        `weights`, `temperature` and `balance_embodiments` set the fractions of a mixture (see `mixture_weights`), by
        default in proportion to the samples. All datasets of a mixture have the same camera names, image sizes and
        dims. `subset` replaces that of every config. Decoded pictures are kept in memory where a dataset's fit into
        its share of `image_cache_bytes`; with 0 memory does not grow with the data.

        Raises DataError when a dataset lacks what its config asks for, ConfigError for values that cannot work.
        """
        configs = [datasets] if isinstance(datasets, DatasetConfig) else list(datasets)
        if subset is not None:
            configs = [dataclasses.replace(config, subset=subset) for config in configs]
        _check_sizes(configs, batch_size, process_index, process_count, num_threads, start_step)
        normalizers = [normalizer] * len(configs) if isinstance(normalizer, Normalizer) else list(normalizer)
        if len(normalizers) != len(configs):
            raise errors.ConfigError(
                "Loader.normalizer", expected=f"one, or {len(configs)}, one per dataset", found=len(normalizers)
            )
        self.datasets = [
            open_frames(
                config,
                own,
                tokenizer,
                image_cache_bytes=image_cache_bytes // len(configs),
                cache_folder=cache_folder,
                faults=faults,
            )
            for config, own in zip(configs, normalizers, strict=True)
        ]
        sizes = [dataset.num_samples for dataset in self.datasets]
        robots = [config.embodiment for config in configs] if balance_embodiments else None
        self.weights = mixture_weights(sizes, weights, temperature=temperature, embodiments=robots)
        self._order, self._seed = GlobalOrder(sizes, seed, self.weights), seed
        self._batch_size, self._num_rows = batch_size, batch_size // process_count
        self._first_row = process_index * self._num_rows
        self._num_threads = num_threads
        self._step = start_step
        self._threads: futures.ThreadPoolExecutor | None = None
        self._begun: grain.DatasetIterator | None = None
        self._jobs: set[futures.Future] = set()  # not done yet
        self._num_damaged = 0
        self._check_mixture()

    @property
    def num_frames(self) -> int:
        """That may be sampled, over all datasets."""
        return sum(dataset.num_frames for dataset in self.datasets)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The damage met so far, at indexing and since."""
        return tuple(fault for dataset in self.datasets for fault in dataset.dataset.faults.faults)

    def metrics(self) -> dict[str, float]:
        """`data/faults`: samples of the last batch that have weight 0 because of damage. A function of the step, so
        that a resumed run logs what an uninterrupted one does."""
        return {"data/faults": float(self._num_damaged)}

    def batch(self, step: int) -> Demonstrations | Transitions:
        """This process's rows of global batch `step`, made on the spot."""
        out = self._allocate()
        self._fill(out, step, 0, self._num_rows)
        return out

    def example(self) -> Demonstrations | Transitions:
        """A batch of the right shapes for initialization; the stream does not advance."""
        return self.batch(0)

    def __next__(self) -> Demonstrations | Transitions:
        """Raises what a thread raised, with its traceback; the loader then stops its threads."""
        if self._begun is None:
            self._start()
        batch, jobs = next(self._begun)
        try:
            if futures.wait(jobs, timeout=BATCH_TIMEOUT).not_done:
                raise errors.DataError(
                    f"batch {self._step} did not come",
                    expected=f"within {BATCH_TIMEOUT:.0f} seconds",
                    fix="look at the file system that holds the data",
                )
            for job in jobs:
                job.result()
        except BaseException:
            self.close()
            raise
        self._step += 1
        self._num_damaged = int((_weight(batch) == 0).sum())
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
        if self._begun is None:
            return
        self._begun.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        futures.wait(list(self._jobs), timeout=_CLOSE_TIMEOUT)
        self._begun = self._threads = None

    def _start(self) -> None:
        self._threads = futures.ThreadPoolExecutor(self._num_threads, thread_name_prefix="vla_jax-loader")
        # One thread of grain's is enough: beginning a batch only hands its rows to the pool above.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
        self._begun = iter(grain.MapDataset.range(_LAST_STEP).map(self._begin).to_iter_dataset(options))
        self._begun.set_state({"next_index": self._step})

    def _allocate(self) -> Demonstrations | Transitions:
        return self.datasets[0].allocate(self._num_rows)

    def _begin(self, step: int) -> tuple[Any, list[futures.Future]]:
        """A batch and the jobs that fill its rows."""
        out = self._allocate()
        bounds = np.linspace(0, self._num_rows, min(self._num_threads, self._num_rows) + 1).astype(int)
        jobs = [
            self._threads.submit(self._fill, out, step, int(first), int(stop))
            for first, stop in itertools.pairwise(bounds)
        ]
        self._jobs.update(jobs)
        for job in jobs:
            job.add_done_callback(self._jobs.discard)
        return out, jobs

    def _fill(self, out: Demonstrations | Transitions, step: int, first: int, stop: int) -> None:
        """Rows `first` to `stop` of this process's part of global batch `step`; every dataset writes its own."""
        rows = np.arange(first, stop)
        positions = step * self._batch_size + self._first_row + rows
        numbers, samples = self._order.at(positions)
        keys = draws.sample_keys(self._seed, positions)
        for number, dataset in enumerate(self.datasets):
            mine = np.flatnonzero(numbers == number)
            if mine.size:
                dataset.fill(out, rows[mine], dataset.selection(samples[mine], keys[mine]), keys[mine])

    def _check_mixture(self) -> None:
        if len(self.datasets) > 1:
            shapes = [_shapes(dataset.allocate(1)) for dataset in self.datasets]
            for dataset, found in zip(self.datasets, shapes, strict=True):
                if found != shapes[0]:
                    raise errors.ConfigError(
                        f"{dataset.config.path} cannot be mixed with {self.datasets[0].config.path}",
                        expected=shapes[0],
                        found=found,
                        fix="use the same camera names, image sizes, action_horizon and action_dim",
                    )


def open_frames(config: DatasetConfig, normalizer: Normalizer, tokenizer: Tokenizer, **options: Any) -> FrameDataset:
    """The dataset of a config: transitions where it asks for them, else demonstrations."""
    kind = DemonstrationDataset if config.transitions is None else TransitionDataset
    return kind(config, normalizer, tokenizer, **options)


def _weight(batch: Demonstrations | Transitions) -> np.ndarray:
    return batch.weight if isinstance(batch, Demonstrations) else batch.extras["weight"]


def _shapes(batch: Demonstrations | Transitions) -> dict[str, tuple[int, ...]]:
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
