"""Damaged data: named, counted and skipped up to a limit, so that one bad record does not end a run of a day."""

import collections
import dataclasses
import threading
from typing import Literal

from vla_jax.core import errors

FaultKind = Literal["corrupt record", "truncated shard", "wrong episode count", "missing file", "bad image"]


@dataclasses.dataclass(frozen=True)
class FaultPolicy:
    """How much damage a run tolerates."""

    strict: bool = False  # stop at the first fault
    limit: int = 100  # stop when more than this many are known; each damaged record, file or picture counts once

    def __post_init__(self):
        if self.limit < 0:
            raise errors.ConfigError("FaultPolicy.limit", expected="0 or more", found=self.limit)


SKIP_AND_COUNT = FaultPolicy()


@dataclasses.dataclass(frozen=True)
class Fault:
    """One damaged thing."""

    kind: FaultKind
    place: str  # file, record or frame; the same place is counted once
    reason: str


class FaultLog:
    """The faults of one dataset so far; several threads may add to it."""

    def __init__(self, policy: FaultPolicy = SKIP_AND_COUNT):
        self.policy = policy
        self._faults: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Remember a fault. Raises DataError when the policy does not tolerate it."""
        with self._lock:
            self._faults.setdefault(fault.place, fault)
            count = len(self._faults)
        if self.policy.strict or count > self.policy.limit:
            allowed = "none (strict)" if self.policy.strict else f"at most {self.policy.limit} faults"
            raise errors.DataError(
                f"{fault.place}: {fault.kind}",
                expected=f"{allowed}, says the fault policy",
                found=f"{fault.reason}; {count} faults so far",
                fix="copy or download the file again, drop the episode, or raise the limit of FaultPolicy",
            )

    @property
    def faults(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(self._faults.values())

    def counts(self) -> dict[str, int]:
        """Faults by kind."""
        return dict(collections.Counter(fault.kind for fault in self.faults))

    def __len__(self) -> int:
        return len(self._faults)
