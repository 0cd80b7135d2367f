"""A replay buffer of a host, for simulators and robots: in memory, or on a disk that outlives the process.

    lane "arm-1"    0 1 2 3 4 5      one actor's rows in order: an observation and the chunk that was run there
    acts            1 1 1 0 1 1      row 3 is only arrived at: the episode ended there, the next begins at 4
    sampled         0 1 2 4          5 waits for the row that it leads to

    buffer = HostBuffer(row, capacity, folder)
    expected = buffer.append("arm-1", first_number, rows, is_first)     # stored when it returns; duplicates are dropped
    batch = buffer.sample(rng, (256,), num_rows=3)                      # windows of 3 rows, numpy

Observations are stored once: the one a row leads to is that of the next row of its lane. Rows of a lane are numbered by
their actor, so that one who does not know what arrived can send again. A time limit leaves the discount at 1 and is
bootstrapped from the last row; a row whose successor never came (its actor died) is never sampled.
"""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int64

from vla_jax.core import errors, trees
from vla_jax.core.types import Observation, Transitions
from vla_jax.data.replay.columns import Columns

_MAX_LANES, _NAME_BYTES = 64, 64


@dataclasses.dataclass
class _Lane:
    number: int
    expected: int  # the number of the next row that is new
    last_slot: int = -1
    last_stamp: int = 0


class HostBuffer:
    """Rows in a ring. Threads may share it."""

    def __init__(self, row: Transitions, capacity: int, folder: str | Path | None = None, *, sync: bool = False):
        """For rows of the shape and dtype of `row`, whose `next_observation` is None. With a folder they are kept and
        found again there; with `sync`, `append` returns when they would outlive a power failure.

        Raises what `Columns` raises, and ConfigError for a capacity below 2 and for a row with `next_observation`.
        """
        if capacity < 2:
            raise errors.ConfigError("host buffer: capacity", expected="at least 2 rows", found=capacity)
        if row.next_observation is not None:
            raise errors.ConfigError(
                "host buffer: next_observation of a row", expected="None, it is the observation of the next row"
            )
        self._row, self.capacity, self._sync = jax.tree.map(_abstract, row), capacity, sync
        self._rows = trees.flatten(self._row)
        specs = {
            **{path: jax.ShapeDtypeStruct((capacity, *leaf.shape), leaf.dtype) for path, leaf in self._rows.items()},
            "stamp": jax.ShapeDtypeStruct((capacity,), np.int64),  # 1 + the count of rows before; 0: none, or half
            "lane": jax.ShapeDtypeStruct((capacity,), np.int32),
            "number": jax.ShapeDtypeStruct((capacity,), np.int64),  # in its lane
            "is_first": jax.ShapeDtypeStruct((capacity,), np.bool_),  # of an episode
            "lane_names": jax.ShapeDtypeStruct((_MAX_LANES, _NAME_BYTES), np.uint8),
            "lane_expected": jax.ShapeDtypeStruct((_MAX_LANES,), np.int64),
        }
        self._is_on_disk = folder is not None
        self._columns = Columns(specs, folder)
        self._arrays = self._columns.arrays
        self._mutex = threading.RLock()
        self._read_index()

    # --- what is there ------------------------------------------------------------------------------------------------

    @property
    def num_inserted(self) -> int:
        """Rows over the whole life."""
        return self._num_inserted

    @property
    def size(self) -> int:
        """Rows that can be sampled: they act, and the row that they lead to is there."""
        return len(self._ready())

    def expected(self, lane: str) -> int:
        """The number of the next row of a lane that is new; 0 for a lane that is not known."""
        with self._mutex:
            return self._lanes[lane].expected if lane in self._lanes else 0

    # --- in -----------------------------------------------------------------------------------------------------------

    def append(self, lane: str, first_number: int, rows: Transitions, is_first: Bool[np.ndarray, "n"]) -> int:
        """Store `n` rows of a lane, numbered from `first_number` on, and return the number that is expected next.

        Rows whose number is below the expected one are there already and are dropped. Numbers that are skipped (rows
        that their actor lost) break the window, as `is_first` does. Raises DataError for rows of another shape.
        """
        named = trees.flatten(rows)
        _check_rows(named, self._rows, len(is_first))
        with self._mutex:
            known = self._lane(lane)
            for i in range(max(0, known.expected - first_number), len(is_first)):
                self._store(known, first_number + i, {path: leaf[i] for path, leaf in named.items()}, bool(is_first[i]))
            self._starts = None
            self._arrays["lane_expected"][known.number] = known.expected
            if self._sync:
                self._columns.sync()
            return known.expected

    def _store(self, lane: _Lane, number: int, row: dict[str, Any], is_first: bool) -> None:
        arrays, slot = self._arrays, self._num_inserted % self.capacity
        before, stamp = lane.last_slot, self._num_inserted + 1
        follows = (
            not is_first and number == lane.expected and before >= 0 and arrays["stamp"][before] == lane.last_stamp
        )
        arrays["stamp"][slot] = 0  # whoever is killed from here on leaves no row, rather than half of one
        self._next[slot] = -1
        for path, leaf in row.items():
            arrays[path][slot] = leaf
        arrays["lane"][slot], arrays["number"][slot] = lane.number, number
        arrays["is_first"][slot] = is_first or not follows
        arrays["stamp"][slot] = stamp
        if follows and before != slot and arrays["action_mask"][before].any():
            self._next[before], self._previous[slot] = slot, before
        self._num_inserted, lane.expected, lane.last_slot, lane.last_stamp = stamp, number + 1, slot, stamp

    def _lane(self, name: str) -> _Lane:
        if name in self._lanes:
            return self._lanes[name]
        encoded = name.encode()
        if not 0 < len(encoded) <= _NAME_BYTES or b"\0" in encoded:
            raise errors.DataError("host buffer: name of a lane", expected=f"1 to {_NAME_BYTES} bytes", found=name[:80])
        if len(self._lanes) >= _MAX_LANES:
            raise errors.DataError(
                "host buffer: too many lanes", expected=f"at most {_MAX_LANES}", found=f"{name!r} besides"
            )
        number = len(self._lanes)
        self._arrays["lane_names"][number] = np.frombuffer(encoded.ljust(_NAME_BYTES, b"\0"), np.uint8)
        self._lanes[name] = _Lane(number, 0)
        return self._lanes[name]

    # --- out ----------------------------------------------------------------------------------------------------------

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, ...], num_rows: int = 1, *, history: int = 1
    ) -> Transitions:
        """Windows of up to `num_rows` consecutive rows, uniform with replacement over all where one may start.

        The chunks of the rows are joined: actions are `[*shape, num_rows * h, a]`. Steps that were not run, or lie
        behind an end or behind what has come so far, are masked. With a `history` above 1 observations get a time axis
        of that length, the oldest first; before the start of an episode its first frame is repeated, masked in
        `image_mask`. `extras` are those of the first row. Raises DataError when there is nothing to sample.
        """
        with self._mutex:
            ready = self._ready()
            if len(ready) == 0:
                raise errors.DataError(
                    "host buffer: nothing to sample",
                    expected="at least two rows of an episode",
                    found=self.num_inserted,
                )
            slots = ready[rng.integers(0, len(ready), shape)]
            window, is_in, after = self._follow(slots, num_rows)
            joined = (*shape, -1)
            mask = (self._arrays["action_mask"][window] & is_in[..., None]).reshape(joined)
            discounts = np.where(mask, self._arrays["discounts"][window].reshape(joined), 1.0)
            actions = self._arrays["actions"][window]
            leaves = {path: self._arrays[path][slots] for path in self._rows if path.startswith("extras/")}
            leaves |= {
                "actions": actions.reshape(*joined, actions.shape[-1]),
                "rewards": np.where(mask, self._arrays["rewards"][window].reshape(joined), 0.0).astype(np.float32),
                "discounts": np.cumprod(discounts, axis=-1).astype(np.float32),
                "action_mask": mask,
            }
            batch = trees.unflatten(self._row.replace(observation=None), leaves)
            return batch.replace(
                observation=self._observations(slots, history), next_observation=self._observations(after, history)
            )

    def example(self, shape: tuple[int, ...], num_rows: int = 1, *, history: int = 1) -> Transitions:
        """Zeros of the shape of a sample."""
        horizon, action_dim = self._row.actions.shape
        steps = (*shape, num_rows * horizon)

        def zeros(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            time = () if history == 1 or path.startswith("prompt") else (history,)
            return np.zeros((*shape, *time, *leaf.shape), leaf.dtype)

        named = trees.flatten(self._row.observation)
        observation = trees.unflatten(self._row.observation, {path: zeros(path, leaf) for path, leaf in named.items()})
        return self._row.replace(
            observation=observation,
            actions=np.zeros((*steps, action_dim), self._row.actions.dtype),
            rewards=np.zeros(steps, np.float32),
            discounts=np.zeros(steps, np.float32),
            action_mask=np.zeros(steps, bool),
            next_observation=jax.tree.map(np.copy, observation),
            extras={name: np.zeros((*shape, *leaf.shape), leaf.dtype) for name, leaf in self._row.extras.items()},
        )

    def _ready(self) -> Int64[np.ndarray, "n"]:
        with self._mutex:
            if self._starts is None:
                self._starts = np.flatnonzero(self._next >= 0)
            return self._starts

    def _follow(
        self, slots: Int64[np.ndarray, "*b"], num_rows: int
    ) -> tuple[Int64[np.ndarray, "*b n"], Bool[np.ndarray, "*b n"], Int64[np.ndarray, "*b"]]:
        """The rows of every window, held at the last one, which are in it, and the row that the last one leads to."""
        window, is_in, going = [slots], [np.ones(slots.shape, bool)], np.ones(slots.shape, bool)
        after = self._next[slots]
        for _ in range(num_rows - 1):
            going = going & (self._next[after] >= 0)
            window.append(np.where(going, after, window[-1]))
            is_in.append(going)
            after = np.where(going, self._next[after], after)
        return np.stack(window, -1), np.stack(is_in, -1), after

    def _observations(self, slots: Int64[np.ndarray, "*b"], history: int) -> Any:
        observation = self._row.observation
        named = {
            path: f"observation/{path}" if path != "value" else "observation" for path in trees.flatten(observation)
        }
        if history == 1:
            return trees.unflatten(observation, {path: self._arrays[column][slots] for path, column in named.items()})
        if not isinstance(observation, Observation):
            raise errors.ConfigError(
                "host buffer: history", expected="rows whose observation is an Observation", found=type(observation)
            )
        frames, is_real = [slots], [np.ones(slots.shape, bool)]
        for _ in range(history - 1):
            before = self._before(frames[-1])
            frames.append(np.where(before >= 0, before, frames[-1]))
            is_real.append(is_real[-1] & (before >= 0))
        stacked, real = np.stack(frames[::-1], -1), np.stack(is_real[::-1], -1)
        is_prompt = {path: path.startswith("prompt") for path in named}
        leaves = {p: self._arrays[column][slots if is_prompt[p] else stacked] for p, column in named.items()}
        leaves |= {path: leaf & real for path, leaf in leaves.items() if path.startswith("image_mask/")}
        return trees.unflatten(observation, leaves)

    def _before(self, slots: Int64[np.ndarray, "*b"]) -> Int64[np.ndarray, "*b"]:
        """The row before in the same episode, -1 where there is none or it was overwritten."""
        before = self._previous[slots]
        return np.where((before >= 0) & (self._next[before] == slots), before, -1)

    # --- over the life of a process -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Array | int]:
        """What a checkpoint keeps: the whole content in memory; of a buffer on disk only how far it had come."""
        with self._mutex:
            if not self._is_on_disk:
                return {path.replace("/", "."): array.copy() for path, array in self._arrays.items()}
            expected = self._arrays["lane_expected"].copy()
            return {"num_inserted": np.asarray(self._num_inserted), "lane_expected": expected}

    def restore(self, state: dict[str, Any], *, rewind: bool) -> None:
        """Go back to a `state`. On disk, rows that came after it are dropped with `rewind`, and kept without.

        Raises CheckpointError when the folder holds less than the state says, or when a rewind would need rows that
        newer ones have overwritten.
        """
        with self._mutex:
            if not self._is_on_disk:
                for path, array in self._arrays.items():
                    array[...] = np.asarray(state[path.replace("/", ".")])
            elif rewind or int(state["num_inserted"]) > self._num_inserted:
                self._rewind(int(state["num_inserted"]), np.asarray(state["lane_expected"]))
            self._read_index()

    def close(self) -> None:
        """Write everything to the disk and let go of the folder."""
        with self._mutex:
            self._columns.close()

    def _rewind(self, num_inserted: int, lane_expected: Int64[np.ndarray, "lanes"]) -> None:
        overwritten = max(0, self._num_inserted - self.capacity) - max(0, num_inserted - self.capacity)
        if num_inserted > self._num_inserted or overwritten > 0:
            raise errors.CheckpointError(
                "host buffer: the folder cannot go back to the checkpoint",
                expected=f"{num_inserted} rows inserted, none of them overwritten since",
                found=f"{self._num_inserted} inserted, {max(0, overwritten)} overwritten",
                fix="give it its own folder back, raise the capacity, or start a new run",
            )
        stamps = self._arrays["stamp"]
        stamps[stamps > num_inserted] = 0
        self._arrays["lane_expected"][:] = lane_expected

    def _read_index(self) -> None:
        """Everything that follows from the columns: links between rows, lanes and the place of the next row."""
        arrays = self._arrays
        stamps = arrays["stamp"]
        self._next, self._previous = np.full((2, self.capacity), -1, np.int64)
        self._starts: Int64[np.ndarray, n] | None = None  # computed when next asked for
        self._num_inserted = int(stamps.max(initial=0))
        self._lanes: dict[str, _Lane] = {}
        slots = np.argsort(stamps, kind="stable")
        slots = slots[stamps[slots] > 0]  # in the order of their coming
        lane_of, number = arrays["lane"][slots], arrays["number"][slots]
        for lane, name in enumerate(arrays["lane_names"]):
            if not name.any():
                break
            mine = slots[lane_of == lane]
            found = _Lane(lane, int(arrays["lane_expected"][lane]))
            if len(mine):
                own = number[lane_of == lane]
                # rows may have been stored without the note of it: who stores is killed in between
                found.expected = max(found.expected, int(own[-1]) + 1)
                found.last_slot, found.last_stamp = int(mine[-1]), int(stamps[mine[-1]])
                acts = arrays["action_mask"][mine[:-1]].any(axis=-1)
                linked = acts & (np.diff(own) == 1) & ~arrays["is_first"][mine[1:]]
                self._next[mine[:-1][linked]] = mine[1:][linked]
                self._previous[mine[1:][linked]] = mine[:-1][linked]
            self._lanes[bytes(name).rstrip(b"\0").decode()] = found


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _check_rows(rows: dict[str, Any], expected: dict[str, jax.ShapeDtypeStruct], num_rows: int) -> None:
    for path in sorted(rows.keys() | expected.keys()):
        wanted = f"{expected[path].dtype}{[num_rows, *expected[path].shape]}" if path in expected else "absent"
        found = f"{rows[path].dtype}{list(rows[path].shape)}" if path in rows else "absent"
        if wanted != found:
            raise errors.DataError(f"host buffer: {path} of rows", expected=wanted, found=found)
