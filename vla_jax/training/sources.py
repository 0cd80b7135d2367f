"""Where `fit` gets its batches: recorded data or an environment, behind one protocol."""

import collections
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh
from jaxtyping import Array, Int

from vla_jax.core.types import Params
from vla_jax.training import sharding

SourceMetrics = dict[str, Any]  # scalars, on the host or on the device; averaged over the log interval


class Source(Protocol):
    """Batches by step. `fit` calls `restore` (when resuming) before the first `next`, then `next` with steps in order.

    Exact resume needs `next` to be a function of `state()` and its arguments: after `restore(state())` the same batches
    come again.
    """

    def example(self) -> Any:
        """One batch of the right shapes and dtypes; does not move the source."""
        ...

    def next(self, step: int, actor_params: Params) -> tuple[Any, SourceMetrics]:
        """The batch of update number `step` (from 0).

        `actor_params` are valid during the call only: the update that follows donates their buffers.
        """
        ...

    def state(self) -> Any:
        """What the checkpoint keeps: a pytree of arrays, ints and floats whose structure does not change in a run."""
        ...

    def restore(self, state: Any) -> None:
        """Continue from a `state()`: leaves come back with their types, device arrays with their shardings."""
        ...


@runtime_checkable
class UsesMesh(Protocol):
    """A source that places its own batches; `fit` calls this first. It splits those of others over their rows."""

    def use_mesh(self, mesh: Mesh) -> None: ...


@runtime_checkable
class Closes(Protocol):
    """A source with threads or processes to end; `fit` calls this last, also after an error."""

    def close(self) -> None: ...


@runtime_checkable
class Compiles(Protocol):
    """A source on the device whose batches are made by a pure function: with `FitConfig.scan_updates` above 1, batches
    and updates are one compiled program (`training/feeding.py`), and every batch is made with the actor of its step.
    """

    simulates: bool  # physics, for which some CPUs need other kernels than updates do

    def operands(self, actor_params: Params) -> tuple[Any, Any]:
        """What `draw` reads, and what it replaces, whose buffers the program takes. Called before every dispatch."""
        ...

    def draw(
        self, fixed: Any, moving: Any, actor_params: Params, step: Int[Array, ""]
    ) -> tuple[Any, Any, SourceMetrics]:
        """The new `moving`, the batch of update number `step`, and metrics."""
        ...

    def moved(self, moving: Any, next_step: int) -> None:
        """What `draw` left, after the updates before `next_step`."""
        ...


class Loader(Protocol):
    """What `DatasetSource` needs of a data loader: `data/loader.py` is one."""

    def example(self) -> Any: ...

    def __iter__(self) -> Any: ...

    def __next__(self) -> Any: ...

    def state(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


@runtime_checkable
class HasMetrics(Protocol):
    """A loader with something to say about its last batch, the same whenever that batch is made."""

    def metrics(self) -> SourceMetrics: ...


class DatasetSource:
    """Recorded demonstrations or transitions. A thread reads ahead and starts the transfer to the devices.

    `prefetch` batches wait on the devices; so many times the batch is the memory it costs there.
    """

    def __init__(self, loader: Loader, prefetch: int = 2):
        self._loader, self._prefetch = loader, prefetch
        self._mesh: Mesh | None = None
        self._state = loader.state()  # of the last batch handed out, not of the last one read ahead
        self._ahead: collections.deque[futures.Future] = collections.deque()
        self._thread: futures.ThreadPoolExecutor | None = None

    def use_mesh(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def example(self) -> Any:
        return self._loader.example()

    def next(self, step: int, actor_params: Params) -> tuple[Any, SourceMetrics]:
        """The next batch, on its devices; `step` and `actor_params` play no part. Raises what the loader raised."""
        if self._thread is None:
            self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="vla_jax-prefetch")
        while len(self._ahead) <= self._prefetch:
            self._ahead.append(self._thread.submit(self._read))
        batch, self._state, metrics = self._ahead.popleft().result()
        return batch, metrics

    def state(self) -> Any:
        return self._state

    def restore(self, state: Any) -> None:
        self._drop()
        self._loader.restore(state)
        self._state = self._loader.state()

    def close(self) -> None:
        """End the reading thread. What it had read ahead is not lost: the loader goes back to the last batch given."""
        if self._thread is not None:
            self.restore(self._state)

    def _drop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread = None
        self._ahead.clear()

    def _read(self) -> tuple[Any, Any, SourceMetrics]:
        batch, state = next(self._loader), self._loader.state()
        metrics = self._loader.metrics() if isinstance(self._loader, HasMetrics) else {}
        return (batch if self._mesh is None else sharding.place_batch(batch, self._mesh)), state, metrics
