"""Where rows arrive at the learner: into the buffer, and interventions into the demonstrations as well."""

import collections
import dataclasses
import threading

import jax
import numpy as np

from vla_jax.data.replay.host import HostBuffer
from vla_jax.training.actor_learner.messages import Rows

_RECENT = 256  # episodes and rows that metrics look back on


@dataclasses.dataclass
class _Last:
    """The last row of an actor."""

    number: int = -1
    was_intervention: bool = False


class Inbox:
    """Threads may share it: rows come in one, batches go out of another.

    With `demonstrations`, a row whose `extras["intervention"]` is true goes there too, as HIL-SERL (arXiv 2410.21845)
    does, with the row that it leads to.
    """

    def __init__(self, buffer: HostBuffer, demonstrations: HostBuffer | None = None):
        self.buffer, self.demonstrations = buffer, demonstrations
        self.learner_step = 0
        self._mutex = threading.Lock()
        self._last: dict[str, _Last] = collections.defaultdict(_Last)
        self._staleness: collections.deque[int] = collections.deque(maxlen=_RECENT)
        self._outcomes: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._num_episodes = 0

    def accept(self, actor: str, rows: Rows) -> int:
        """Store the rows that are new; returns the number that is expected next, which is the acknowledgement.

        Staleness of a row is how many learner steps ago the parameters that acted were published.
        """
        with self._mutex:
            start = max(0, self.buffer.expected(actor) - rows.first_number)
            if self.demonstrations is not None:  # first: what is in the buffer is not looked at again
                self._keep_interventions(actor, rows)
            expected = self.buffer.append(actor, rows.first_number, rows.rows, rows.is_first)
            self._staleness.extend(self.learner_step - int(version) for version in rows.versions[start:])
            ended = rows.outcomes[start:][~np.isnan(rows.outcomes[start:])]
            self._outcomes.extend(map(float, ended))
            self._num_episodes += len(ended)
            return expected

    def metrics(self) -> dict[str, float]:
        """Over the latest rows and episodes."""
        with self._mutex:
            found = {
                "collect/rows": float(self.buffer.num_inserted),
                "collect/episodes": float(self._num_episodes),
                "collect/success_rate": float(np.mean(self._outcomes)) if self._outcomes else 0.0,
                "collect/staleness": float(np.mean(self._staleness)) if self._staleness else 0.0,
                "collect/max_staleness": float(max(self._staleness, default=0)),
            }
            if self.demonstrations is not None:
                found["collect/demonstration_rows"] = float(self.demonstrations.num_inserted)
            return found

    def state(self, actor: str) -> dict[str, np.ndarray]:
        """What `accept` and `metrics` remember, besides the buffers, where there is one actor."""
        with self._mutex:
            recent = np.full((2, _RECENT), np.nan)
            recent[0, : len(self._staleness)], recent[1, : len(self._outcomes)] = self._staleness, self._outcomes
            last = self._last[actor]
            numbers = np.array([last.number, last.was_intervention, self._num_episodes], np.int64)
            return {"recent": recent, "numbers": numbers}

    def restore(self, actor: str, state: dict[str, np.ndarray]) -> None:
        with self._mutex:
            staleness, outcomes = (row[~np.isnan(row)] for row in np.asarray(state["recent"]))
            self._staleness.clear(), self._staleness.extend(map(int, staleness))
            self._outcomes.clear(), self._outcomes.extend(map(float, outcomes))
            number, was_intervention, self._num_episodes = map(int, state["numbers"])
            self._last[actor] = _Last(number, bool(was_intervention))

    def _keep_interventions(self, actor: str, rows: Rows) -> None:
        last, flags = self._last[actor], np.asarray(rows.rows.extras["intervention"])
        for i in range(len(rows)):
            number = rows.first_number + i
            follows = number == last.number + 1 and not rows.is_first[i]
            is_led_to = follows and last.was_intervention
            if flags[i] or is_led_to:
                # what an intervention led to has no successor there, so it is never sampled itself
                row = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], rows.rows)
                self.demonstrations.append(actor, number, row, np.array([not is_led_to]))
            if number > last.number:
                last.number, last.was_intervention = number, bool(flags[i])
