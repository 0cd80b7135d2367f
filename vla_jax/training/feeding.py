"""How updates get their batches: pulled by the host, or drawn on the device inside the program that updates."""

from typing import Protocol

from jaxtyping import Array, Int

from vla_jax.training import sharding
from vla_jax.training.sources import Compiles, Source, SourceMetrics, UsesMesh
from vla_jax.training.step import Carry, TrainStep


class Feed(Protocol):
    def advance(self, carry: Carry, step: int) -> tuple[Carry, Int[Array, ""], list[SourceMetrics]]:
        """Dispatch the updates from `step` on, as many as one dispatch makes: the carry after them, a scalar to wait
        for, and what the source has to say."""
        ...


def feed(source: Source, train_step: TrainStep) -> Feed:
    """One program for batches and updates where a dispatch makes several and the source allows it."""
    if train_step.scan_updates > 1 and isinstance(source, Compiles):
        return _Drawn(source, train_step)
    return _Pulled(source, train_step)


class _Pulled:
    def __init__(self, source: Source, train_step: TrainStep):
        self._source, self._train_step = source, train_step
        self._is_placed = isinstance(source, UsesMesh)

    def advance(self, carry: Carry, step: int) -> tuple[Carry, Int[Array, ""], list[SourceMetrics]]:
        actor_params = self._train_step.learner.actor(carry.learner)
        steps = range(step, step + self._train_step.scan_updates)
        batches, values = zip(*(self._source.next(each, actor_params) for each in steps), strict=True)
        if not self._is_placed:
            batches = [sharding.place_batch(batch, self._train_step.mesh) for batch in batches]
        batch = batches[0] if len(batches) == 1 else self._train_step.stack(*batches)
        return *self._train_step.run(carry, batch), list(values)


class _Drawn:
    def __init__(self, source: Compiles, train_step: TrainStep):
        self._source, self._train_step = source, train_step
        self._run = train_step.drawing(source.draw, simulates=source.simulates)

    def advance(self, carry: Carry, step: int) -> tuple[Carry, Int[Array, ""], list[SourceMetrics]]:
        fixed, moving = self._source.operands(self._train_step.learner.actor(carry.learner))
        carry, moving, metrics, done = self._run(carry, moving, fixed)
        self._source.moved(moving, step + self._train_step.scan_updates)
        return carry, done, [metrics]
