"""One compiled train step around a learner's update: keys from the step, metric sums and the NaN watch on the device.

The host never waits for a step: what it needs to know is summed in `Carry` and fetched once per log interval.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from vla_jax.core import keys, placement, runtime
from vla_jax.core.types import Metrics, Params
from vla_jax.learners.base import Learner, LearnerState
from vla_jax.training import sharding

# what is read, what moves, actor, step -> what moved, batch, metrics (`sources.Compiles.draw`)
Draw = Callable[[Any, Any, Params, Int[Array, ""]], tuple[Any, Any, Metrics]]
Augment = Callable[[Key[Array, ""], Any], Any]  # a batch of one update -> what the learner sees of it


class Carry(struct.PyTreeNode):
    """What a train step takes and gives back; its buffers are donated."""

    learner: LearnerState
    train_step: Int[Array, ""]  # updates done
    sums: Metrics  # of every metric since the last log
    count: Int[Array, ""]  # updates since the last log
    bad_step: Int[Array, ""]  # the first update with a metric that is not finite; -1: none so far
    bad_metrics: Metrics  # the metrics of that update


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: jit caches on the bound method
class TrainStep:
    """`run(carry, batch) -> (carry, done)` for one mesh; `done` is a scalar to wait for that is never donated.

    With `scan_updates=k > 1` a batch has a leading axis of k and one call makes k updates.
    """

    learner: Learner
    seed: int
    mesh: Mesh
    example: Any  # abstract batch of one update
    shardings: Carry  # a sharding per leaf
    abstract: Carry  # shapes and dtypes per leaf
    scan_updates: int = 1
    augment: Augment | None = None

    def init(self, example_batch: Any) -> Carry:
        """A fresh carry, made on its devices: no device ever holds the whole of a split parameter.

        Abstract leaves of `example_batch` reach the learner as zeros.
        """
        flat, structure = jax.tree.flatten(example_batch)
        given = [None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in flat]

        def init(key, given):
            leaves = [jnp.zeros(a.shape, a.dtype) if g is None else g for a, g in zip(flat, given, strict=True)]
            return _empty(self.learner.init(key, structure.unflatten(leaves)), tuple(self.abstract.sums))

        return jax.jit(init, out_shardings=self.shardings)(keys.stream(self.seed, "init"), given)

    @functools.cached_property
    def run(self) -> Any:
        shardings = (self.shardings, sharding.replicated(self.mesh))
        options = runtime.kernel_options(self._platform, side_by_side=self._side_by_side)
        return jax.jit(self.apply, donate_argnums=0, out_shardings=shardings, compiler_options=options)

    def drawing(self, draw: Draw, *, simulates: bool) -> Any:
        """Jitted: `(carry, moving, fixed) -> (carry, moving, metrics, done)`; the first two are donated.

        Draws a batch with the actor as it is then and updates, `scan_updates` times; `metrics` are the means of draw's.
        """

        def run(carry, moving, fixed):
            def one(state, _):
                carry, moving = state
                moving, batch, metrics = draw(fixed, moving, self.learner.actor(carry.learner), carry.train_step)
                return (self._update(carry, batch), moving), metrics

            with self._traced(beside):
                (carry, moving), metrics = jax.lax.scan(one, (carry, moving), None, self.scan_updates)
            return carry, moving, jax.tree.map(jnp.mean, metrics), carry.train_step + 0

        beside = self._side_by_side and not simulates
        options = {} if simulates else runtime.kernel_options(self._platform, side_by_side=beside)
        shardings = (self.shardings, None, None, sharding.replicated(self.mesh))
        return jax.jit(run, donate_argnums=(0, 1), out_shardings=shardings, compiler_options=options)

    def apply(self, carry: Carry, batch: Any) -> tuple[Carry, Int[Array, ""]]:
        """The pure function that `run` compiles."""
        with self._traced(self._side_by_side):
            if self.scan_updates == 1:
                carry = self._update(carry, batch)
            else:
                carry, _ = jax.lax.scan(lambda carry, batch: (self._update(carry, batch), None), carry, batch)
            return carry, carry.train_step + 0

    @contextlib.contextmanager
    def _traced(self, beside: bool) -> Iterator[None]:
        """Networks learn the mesh from the context (`core/placement.py`)."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh), placement.side_by_side(beside):
            yield

    @property
    def _platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @functools.cached_property
    def _side_by_side(self) -> bool:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return placement.pays_side_by_side(self.abstract.learner)

    @functools.cached_property
    def stack(self) -> Any:
        """Jitted: `scan_updates` batches to one with a leading axis, every row where its batch had it."""
        return jax.jit(lambda *batches: jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches))

    def clear(self, carry: Carry) -> Carry:
        """The carry with an empty log interval."""
        return carry.replace(**self._place(sums=dict.fromkeys(carry.sums, 0.0), count=0))

    def resumed(self, learner: LearnerState, train_step: int, sums: Mapping[str, float], count: int) -> Carry:
        """A carry around a restored learner state, in the middle of a log interval if `count` is not 0."""
        names = self.abstract.sums
        known = {name: sums.get(name, 0.0) for name in names}
        rest = self._place(
            sums=known, count=count, train_step=train_step, bad_step=-1, bad_metrics=dict.fromkeys(names, 0.0)
        )
        return Carry(learner=learner, **rest)

    def _place(self, **values: Any) -> dict[str, Any]:
        placed = {}
        for name, value in values.items():
            arrays = jax.tree.map(lambda leaf, kind: jnp.asarray(leaf, kind.dtype), value, getattr(self.abstract, name))
            placed[name] = jax.device_put(arrays, getattr(self.shardings, name))
        return placed

    def _update(self, carry: Carry, batch: Any) -> Carry:
        key = keys.at_step(keys.stream(self.seed, "update"), carry.train_step)
        if self.augment is not None:
            batch = self.augment(keys.at_step(keys.stream(self.seed, "augment"), carry.train_step), batch)
        learner_state, metrics = self.learner.update(carry.learner, key, batch)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        bad = ~jnp.isfinite(jnp.stack(list(metrics.values()))).all() if metrics else jnp.zeros((), bool)
        first = bad & (carry.bad_step < 0)
        return Carry(
            learner=learner_state,
            train_step=carry.train_step + 1,
            sums={name: carry.sums[name] + value for name, value in metrics.items()},
            count=carry.count + 1,
            bad_step=jnp.where(first, carry.train_step, carry.bad_step),
            bad_metrics={name: jnp.where(first, value, carry.bad_metrics[name]) for name, value in metrics.items()},
        )


def build(
    learner: Learner,
    example_batch: Any,
    mesh: Mesh,
    *,
    seed: int = 0,
    logical_axes: Mapping[str, Any] | None = None,
    fsdp_min_size: int = 2**16,
    scan_updates: int = 1,
    augment: Augment | None = None,
) -> TrainStep:
    """Trace `learner` on shapes only (nothing is computed or allocated) and give every array its place.

    `augment` changes every batch inside the step, with a key of its own. `example_batch` may be abstract.

    Raises ConfigError as `sharding.param_shardings` does.
    """
    example = jax.eval_shape(lambda batch: jax.tree.map(jnp.asarray, batch), example_batch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key, example)
    metrics = jax.eval_shape(learner.update, state, key, example)[1]
    abstract = jax.eval_shape(lambda state: _empty(state, tuple(metrics)), state)
    copied = sharding.replicated(mesh)
    shardings = jax.tree.map(lambda _: copied, abstract).replace(
        learner=sharding.param_shardings(state, mesh, logical_axes, fsdp_min_size=fsdp_min_size)
    )
    return TrainStep(learner, seed, mesh, example, shardings, abstract, scan_updates, augment)


def _empty(state: LearnerState, names: tuple[str, ...]) -> Carry:
    def zeros() -> Metrics:
        return {name: jnp.zeros((), jnp.float32) for name in names}

    def integer(value: int) -> Int[Array, ""]:
        return jnp.full((), value, jnp.int32)

    return Carry(state, integer(0), zeros(), integer(0), integer(-1), zeros())
