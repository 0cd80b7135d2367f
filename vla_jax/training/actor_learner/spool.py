"""What an actor has done and the learner has not acknowledged: kept, and sent again after a lost connection.

With a folder every row is a file there until it is acknowledged, so that it survives the death of the actor too.
"""

import collections
import dataclasses
import math
import os
import threading
from pathlib import Path

import jax
import numpy as np

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.training.actor_learner import messages
from vla_jax.training.actor_learner.messages import Rows


@dataclasses.dataclass(frozen=True, eq=False)
class ActorRow:
    """One row before it has a number."""

    row: Transitions  # one, no leading axis
    is_first: bool
    version: int  # of the parameters that acted
    outcome: float  # 1 or 0 on the last row of an episode, NaN elsewhere


class Spool:
    """Numbered rows, oldest first. Threads may share it.

    When `max_rows` wait, the oldest is dropped for a new one (`num_lost` counts them): a robot goes on while its
    learner is away. What was acknowledged is never among them.
    """

    def __init__(self, row: Transitions, folder: str | Path | None = None, max_rows: int = 10_000):
        """For rows like `row`. Rows that an earlier process left in the folder are there again. Raises DataError for
        files that are no rows of this kind."""
        self._row, self._max_rows = row, max_rows
        self._folder = None if folder is None else Path(folder)
        self._mutex = threading.Lock()
        self._waiting: collections.OrderedDict[int, Rows] = collections.OrderedDict()
        self.num_lost = 0
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(self._folder.glob("*.row"), key=lambda file: int(file.stem)):
                self._waiting[int(file.stem)] = self._read(file)
        self.next_number = next(reversed(self._waiting), -1) + 1

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: ActorRow) -> int:
        """Keep one row; returns its number."""
        with self._mutex:
            number = self.next_number
            columns = jax.tree.map(lambda leaf: np.asarray(leaf)[None], row.row)
            numbers = (np.array([row.is_first]), np.array([row.version], np.int64), np.array([row.outcome], np.float32))
            kept = Rows(number, columns, *numbers)
            if self._folder is not None:
                partial = self._folder / f"{number}.incomplete"
                partial.write_bytes(messages.pack_rows(kept))
                os.replace(partial, self._file(number))
            self._waiting[number] = kept
            self.next_number += 1
            if len(self._waiting) > self._max_rows:
                self._drop(next(iter(self._waiting)))
                self.num_lost += 1
            return number

    def batch(self, max_rows: int = 256, max_bytes: int = 32 << 20) -> Rows | None:
        """The oldest rows that wait, at least one, joined as far as their numbers follow one another and they fit into
        a message; None when nothing waits."""
        row_bytes = sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(self._row))
        most = max(1, min(max_rows, max_bytes // max(1, row_bytes)))
        with self._mutex:
            parts: list[Rows] = []
            for number, part in self._waiting.items():
                if len(parts) == most or (parts and number != parts[-1].first_number + 1):
                    break
                parts.append(part)
        if not parts:
            return None
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.rows for part in parts))
        columns = (np.concatenate([getattr(p, name) for p in parts]) for name in ("is_first", "versions", "outcomes"))
        return Rows(parts[0].first_number, joined, *columns)

    def acknowledge(self, expected: int) -> None:
        """Everything below this number is the learner's; new rows get numbers from there on."""
        with self._mutex:
            for number in [number for number in self._waiting if number < expected]:
                self._drop(number)
            self.next_number = max(self.next_number, expected)

    def _drop(self, number: int) -> None:
        del self._waiting[number]
        if self._folder is not None:
            self._file(number).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.row"

    def _read(self, file: Path) -> Rows:
        try:
            return messages.unpack_rows(file.read_bytes(), self._row)
        except errors.RequestError as error:
            raise errors.DataError(
                f"{file}: not a row of this actor",
                expected=str(messages.describe(self._row)),
                found=error.place,
                fix="give the actor the spool folder it had, or an empty one",
            ) from error
