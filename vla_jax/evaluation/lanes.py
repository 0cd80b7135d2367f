"""Which episode runs in which lane of a host environment, and what a policy that sees all lanes at once needs for it.

Episodes are taken in order, each once. Idle lanes at the end are shown as they were last seen, so that one compiled
program serves from the first decision to the last.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vla_jax.core import runtime
from vla_jax.learners.base import Memory

Start = Callable[[Sequence[int], Sequence[int]], None]  # episodes, and the lanes they start in
Look = Callable[[Sequence[int]], Any]  # of lanes; leaves have a leading axis of as many
Step = Callable[[Float[np.ndarray, "n h a"], Sequence[int]], Any]  # chunks, lanes; the result has `done`
MapRows = Callable[..., Any]  # as jax.tree.map, over what `Look` gives


class Ran(NamedTuple):
    """What executing one chunk in every busy lane gave."""

    lanes: list[int]
    result: Any  # of `Step`; rows are those lanes
    ended: list[tuple[int, int]]  # (lane, episode)


class Lanes:
    """The bookkeeping of one evaluation."""

    def __init__(
        self,
        num_lanes: int,
        num_episodes: int,
        *,
        start: Start,
        look: Look,
        step: Step,
        map_rows: MapRows = jax.tree.map,
    ):
        self._num_lanes, self._start, self._look, self._step, self._map = num_lanes, start, look, step, map_rows
        self._waiting = deque(range(num_episodes))
        self.busy: dict[int, int] = {}  # lane -> episode
        self._last: Any = None

    def refill(self) -> list[int]:
        """Start the next episodes in free lanes, in order, and return those lanes."""
        free = [lane for lane in range(self._num_lanes) if lane not in self.busy][: len(self._waiting)]
        if free:
            self.busy |= {lane: self._waiting.popleft() for lane in free}
            self._start([self.busy[lane] for lane in free], free)
        return free

    def observe(self) -> Any:
        """Busy lanes as they are now; an idle one shows its last frame, or another lane's where it never ran."""
        lanes = sorted(self.busy)
        seen = self._look(lanes)
        if self._last is None:
            fill = [lanes.index(lane) if lane in self.busy else 0 for lane in range(self._num_lanes)]
            self._last = self._map(lambda array: array[fill], seen)
        else:
            self._last = self._map(lambda old, new: _replaced(old, lanes, new), self._last, seen)
        return self._last

    def run(self, actions: Float[np.ndarray, "n h a"]) -> Ran:
        """Execute a chunk in every busy lane."""
        lanes = sorted(self.busy)
        result = self._step(actions[lanes], lanes)
        ended = [(lane, self.busy.pop(lane)) for lane, done in zip(lanes, result.done, strict=True) if done]
        return Ran(lanes, result, ended)


class Decides(Protocol):
    """An actor and the pure functions at its edges; see `rollouts.Rollout`."""

    act: Callable[..., Any]
    normalize: Callable[..., Any]
    unnormalize: Callable[..., Any]
    jit: bool  # False for an actor that is no JAX program, such as a client of a server


def decider(policy: Decides) -> Callable[..., tuple[Array, Memory]]:
    """(actor_params, key, observation, memory) -> (chunks for the environment, memory)."""

    def decide(actor_params, key, observation, memory):
        actions, memory = policy.act(actor_params, key, policy.normalize(observation), memory)
        return policy.unnormalize(actions, observation.state), memory

    return jax.jit(decide, compiler_options=runtime.kernel_options(jax.default_backend())) if policy.jit else decide


def restart(memory: Memory, fresh: Memory, lanes: Sequence[int]) -> Memory:
    """Memory as at the start in these lanes, untouched in the others."""
    rows = jnp.array(lanes, jnp.int32)
    return jax.tree.map(lambda old, new: jnp.asarray(old).at[rows].set(jnp.asarray(new)[rows]), memory, fresh)


def _replaced(old: np.ndarray, rows: Sequence[int], new: np.ndarray) -> np.ndarray:
    out = old.copy()
    out[list(rows)] = new
    return out
