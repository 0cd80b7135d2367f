"""What `fit` trains from when its actors are not compiled with the learner.

    ActorLearnerSource   actors are other processes: batches come as fast as the learner takes them, whatever they do
    InterleavedSource    one actor in this process, a fixed number of decisions per update: the same numbers every time

Both run the same code: rows go through `Spool`, `messages` and `Inbox`, parameters through `messages`. Batches are
drawn on the host, a part of them from demonstrations.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.core import errors
from vla_jax.core.types import Params, Transitions
from vla_jax.data import trajectories as resident
from vla_jax.data.replay import mixing
from vla_jax.data.replay.host import HostBuffer
from vla_jax.training.actor_learner import messages
from vla_jax.training.actor_learner.actor import Actor
from vla_jax.training.actor_learner.inbox import Inbox
from vla_jax.training.actor_learner.server import LearnerServer
from vla_jax.training.actor_learner.spool import Spool
from vla_jax.training.interventions import TAG
from vla_jax.training.sources import SourceMetrics

_ACTOR = "actor"  # the name of the one in this process


@dataclasses.dataclass(frozen=True)
class ActorLearnerConfig:
    """Defaults are SERL's (arXiv 2401.16013)."""

    shape: tuple[int, ...] = (256,)  # leading axes of a batch, the last one its size
    num_rows: int = 1  # consecutive rows per sample, their chunks joined
    training_starts: int = 300  # rows that must be there before the first update
    publish_every: int = 30  # updates between two versions of the parameters
    demonstration_fraction: float = 0.5  # of every batch, where there are demonstrations
    seed: int = 0

    def __post_init__(self):
        counts = {"num_rows": self.num_rows, "training_starts": self.training_starts}
        counts |= {"publish_every": self.publish_every, "shape": min(self.shape, default=0)}
        for name, value in counts.items():
            if value < 1:
                raise errors.ConfigError(f"ActorLearnerConfig.{name}", expected="at least 1", found=value)
        if not 0 <= self.demonstration_fraction <= 1:
            raise errors.ConfigError(
                "ActorLearnerConfig.demonstration_fraction", expected="in [0, 1]", found=self.demonstration_fraction
            )


class Samples(Protocol):
    """Demonstrations to draw from: a `HostBuffer` is one, `ResidentDemonstrations` and `RecordedRows` are others."""

    @property
    def size(self) -> int: ...

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], num_rows: int = 1) -> Transitions: ...


class ResidentDemonstrations:
    """Recorded trajectories on the device as demonstrations beside rows that came from actors."""

    def __init__(self, trajectories: resident.Trajectories, action_horizon: int, *, whole: bool = False):
        """Chunks of `action_horizon` steps; it is that of a row."""
        self._trajectories, self._horizon, self._whole = trajectories, action_horizon, whole
        self._starts: dict[int, jax.Array] = {}  # by action horizon

    @property
    def size(self) -> int:
        return self._trajectories.num_rows

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], num_rows: int = 1) -> Transitions:
        horizon = self._horizon * num_rows
        if horizon not in self._starts:
            self._starts[horizon] = resident.chunk_starts(self._trajectories, horizon, whole=self._whole)
        key = jax.random.key(int(rng.integers(1 << 31)))
        batch = _chunk_batch(self._trajectories, self._starts[horizon], key, shape, horizon)
        return batch.replace(extras={TAG: jnp.zeros(shape, bool)})


class RecordedRows:
    """Recorded rows as demonstrations; numpy, with what actors store as their observations."""

    def __init__(self, rows: Transitions):
        self._rows = rows.replace(extras={TAG: np.zeros(len(rows.rewards), bool)})

    @property
    def size(self) -> int:
        return len(self._rows.rewards)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], num_rows: int = 1) -> Transitions:
        """Raises ConfigError for several rows joined: what follows a recorded row is not known."""
        if num_rows != 1:
            raise errors.ConfigError("recorded rows: num_rows", expected=1, found=num_rows)
        index = rng.integers(0, self.size, shape)
        return jax.tree.map(lambda leaf: leaf[index], self._rows)


_chunk_batch = jax.jit(resident.chunk_batch, static_argnums=(3, 4))


class _Batches:
    """Batches of a step out of a buffer and demonstrations; a function of both, the seed and the step."""

    def __init__(self, buffer: HostBuffer, demonstrations: Samples | None, config: ActorLearnerConfig):
        if config.training_starts >= buffer.capacity:
            raise errors.ConfigError(
                "ActorLearnerConfig.training_starts",
                expected=f"below the buffer's capacity of {buffer.capacity} rows",
                found=config.training_starts,
            )
        if jax.process_count() > 1:
            raise errors.ConfigError(
                "actors and a learner of several processes",
                expected="one learner process, whose mesh may have many devices",
                found=jax.process_count(),
            )
        self._buffer, self._demonstrations, self._config = buffer, demonstrations, config

    def example(self) -> Transitions:
        """Zeros of the shape of a batch."""
        config = self._config
        example = self._buffer.example(config.shape, config.num_rows)
        return example.replace(extras={**example.extras, "source": np.zeros(config.shape, np.int32)})

    def at(self, step: int) -> Transitions:
        """Demonstrations are source 0 and come first, experience is source 1."""
        config = self._config
        rng = np.random.default_rng([config.seed, step])
        fraction = 0.0 if self._demonstrations is None or self._demonstrations.size == 0 else 1.0
        fraction *= config.demonstration_fraction
        counts = mixing.split_counts(config.shape[-1], (fraction, 1 - fraction))
        given = [(i, source, counts[i]) for i, source in enumerate((self._demonstrations, self._buffer)) if counts[i]]
        parts = [source.sample(rng, (*config.shape[:-1], count), config.num_rows) for _, source, count in given]
        return mixing.join(parts, [i for i, _, _ in given])


class ActorLearnerSource:
    """Rows of actors that connect to `server`. The learner waits for them only before its first update.

    A checkpoint holds where the buffer was. With a buffer on disk nothing that was acknowledged is lost with the
    learner's process: a resumed run goes on with all of it. One in memory goes back to the checkpoint's content.
    """

    def __init__(
        self,
        server: LearnerServer,
        config: ActorLearnerConfig,
        demonstrations: Samples | None = None,
        *,
        select: Callable[[Params], Params] = lambda actor_params: actor_params,
        patience: float = 3600.0,
    ):
        """The server's inbox gives buffer and, unless others are given, demonstrations. `select` is the part of the
        acting parameters that is published: leave out what never changes (a frozen base policy), and let the actors'
        `assemble` put it back. `patience` in seconds, for the first `training_starts` rows."""
        self._server, self._config, self._select, self._patience = server, config, select, patience
        inbox = server.inbox
        self._batches = _Batches(inbox.buffer, demonstrations or inbox.demonstrations, config)
        self._version: int | None = None
        self._is_started = False

    def example(self) -> Transitions:
        return self._batches.example()

    def next(self, step: int, actor_params: Params) -> tuple[Transitions, SourceMetrics]:
        """The batch of this step. Raises TrainingError when rows do not come, or could not be stored."""
        if not self._is_started:
            self._server.start()
            self._is_started = True
        self._server.check()
        self._server.inbox.learner_step = step
        if self._version is None or step - self._version >= self._config.publish_every:
            self._server.publish(step, self._select(actor_params))
            self._version = step
        self._wait_for_rows()
        metrics = {**self._server.inbox.metrics(), "collect/actors": float(self._server.num_actors)}
        return self._batches.at(step), metrics

    def state(self) -> Any:
        return {name: buffer.state() for name, buffer in _buffers(self._server.inbox).items()}

    def restore(self, state: Any) -> None:
        for name, buffer in _buffers(self._server.inbox).items():
            buffer.restore(state[name], rewind=False)

    def close(self) -> None:
        self._server.close()
        for buffer in _buffers(self._server.inbox).values():
            buffer.close()

    def _wait_for_rows(self) -> None:
        deadline = time.monotonic() + self._patience
        while self._server.inbox.buffer.size < self._config.training_starts:
            self._server.check()
            if time.monotonic() > deadline:
                raise errors.TrainingError(
                    f"{self._server.address}: too few rows to start training",
                    expected=f"{self._config.training_starts} in {self._patience:g} s",
                    found=f"{self._server.inbox.buffer.size} of {self._server.num_actors} connected actors",
                    fix="start an actor with this address, or lower training_starts",
                )
            time.sleep(0.02)


class InterleavedSource:
    """One actor in this process, `decisions_per_update` of its decisions before every update (a fraction is fine).

    Everything is a function of the seeds, so a run is the same every time, and a resumed one goes on to the bit: the
    checkpoint holds the buffer (one on disk is rewound), the acting parameters and what the actor did in its episode.
    """

    def __init__(
        self,
        actor: Actor,
        inbox: Inbox,
        row: Transitions,
        abstract_actor: Params,
        config: ActorLearnerConfig,
        demonstrations: Samples | None = None,
        *,
        decisions_per_update: float = 1.0,
    ):
        if decisions_per_update <= 0:
            raise errors.ConfigError("decisions_per_update", expected="above 0", found=decisions_per_update)
        self._actor, self._inbox, self._row, self._config = actor, inbox, row, config
        self._batches = _Batches(inbox.buffer, demonstrations or inbox.demonstrations, config)
        self._per_update = decisions_per_update
        self._version = -1
        self._params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_actor)
        self._spool = Spool(row)

    def example(self) -> Transitions:
        return self._batches.example()

    def next(self, step: int, actor_params: Params) -> tuple[Transitions, SourceMetrics]:
        """The batch of this step. Raises TrainingError when the buffer is too small to start training."""
        if self._version < 0 or step - self._version >= self._config.publish_every:
            message = messages.pack_params(step, actor_params)
            self._version, params = messages.unpack_params(messages.unpack(message, "params"))
            self._params = jax.device_put(params)
        self._inbox.learner_step = step
        due = math.floor((step + 1) * self._per_update) - math.floor(step * self._per_update)
        for _ in range(due):
            self._decide()
        while self._inbox.buffer.size < self._config.training_starts:
            if self._inbox.buffer.num_inserted > 2 * self._inbox.buffer.capacity:
                raise errors.TrainingError(
                    "too few rows to start training",
                    expected=f"{self._config.training_starts} in a buffer of {self._inbox.buffer.capacity}",
                    found=self._inbox.buffer.size,
                    fix="raise the capacity, or lower training_starts",
                )
            self._decide()
        return self._batches.at(step), self._inbox.metrics()

    def state(self) -> Any:
        buffers = {name: buffer.state() for name, buffer in _buffers(self._inbox).items()}
        horizon = self._row.actions.shape[0]
        return {
            **buffers,
            "actor": self._actor.state(horizon),
            "version": np.asarray(self._version),
            "params": self._params,
            "next_number": np.asarray(self._spool.next_number),
            "inbox": self._inbox.state(_ACTOR),
        }

    def restore(self, state: Any) -> None:
        for name, buffer in _buffers(self._inbox).items():
            buffer.restore(state[name], rewind=True)
        self._actor.restore(state["actor"])
        self._inbox.restore(_ACTOR, state["inbox"])
        # off the learner's mesh: an actor computes on one device, as before
        self._version, self._params = int(state["version"]), jax.device_put(jax.device_get(state["params"]))
        self._spool.acknowledge(int(state["next_number"]))

    def close(self) -> None:
        for buffer in _buffers(self._inbox).values():
            buffer.close()

    def _decide(self) -> None:
        for row in self._actor.decide(self._params, self._version):
            self._spool.add(row)
        while (rows := self._spool.batch()) is not None:
            self._spool.acknowledge(
                self._inbox.accept(_ACTOR, messages.unpack_rows(messages.pack_rows(rows), self._row))
            )


def _buffers(inbox: Inbox) -> dict[str, HostBuffer]:
    found = {"buffer": inbox.buffer}
    return found if inbox.demonstrations is None else {**found, "demonstrations": inbox.demonstrations}
