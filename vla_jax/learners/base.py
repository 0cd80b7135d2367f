"""The contract of every training algorithm, imitation included.

A learner is a frozen dataclass of config and static modules. `update` is pure, so `fit` may jit it, shard it and scan
it. Learners get batches; where those come from is the business of `training/sources.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import placement
from vla_jax.core.types import Metrics, Observation, Params

State = TypeVar("State")
Memory = Any  # what an actor carries between calls, a pytree with leading batch axes; () when nothing


class LearnerState(struct.PyTreeNode):
    """The least a learner's state holds; algorithms add targets, optimizer states, temperatures."""

    step: Int[Array, ""]
    params: Params


class Learner(Protocol):
    def init(self, key: Key[Array, ""], example_batch: Any) -> LearnerState: ...

    def update(self, state: LearnerState, key: Key[Array, ""], batch: Any) -> tuple[LearnerState, Metrics]: ...

    def actor(self, state: LearnerState) -> Params:
        """The parameters that acting needs, for example the averaged ones."""
        ...

    def initial_memory(self, batch_size: int) -> Memory: ...

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: Memory
    ) -> tuple[Float[Array, "b h a"], Memory]:
        """A chunk of normalized actions for every observation of the batch."""
        ...


@runtime_checkable
class HasFrozen(Protocol):
    """A learner whose state holds parameters that no update changes: checkpoints leave them out."""

    def without_frozen(self, state: Any) -> Any:
        """The state that a checkpoint holds; `actor` of it is what a checkpoint holds for acting."""
        ...


def apply_gradients(state: State, optimizer: optax.GradientTransformation, name: str, grads: Params) -> State:
    """One step of the part `name` of a state whose `params` and `opt_state` are by part."""
    updates, opt_state = optimizer.update(grads, state.opt_state[name], state.params[name])
    params = {**state.params, name: optax.apply_updates(state.params[name], updates)}
    return state.replace(params=params, opt_state={**state.opt_state, name: opt_state})


def scan_updates(
    step: Callable[[State, tuple[Key[Array, ""], Any]], tuple[State, Metrics]],
    state: State,
    key: Key[Array, ""],
    batch: Any,
) -> tuple[State, Metrics]:
    """`step(state, (key, rows))` on the entries of the batch's first axis, one after another; mean metrics."""
    keys = jax.random.split(key, jax.tree.leaves(batch)[0].shape[0])
    # an accelerator copies less between updates when the body of the loop has two of them
    unroll = 1 if placement.on_one_cpu() else 2
    state, metrics = jax.lax.scan(step, state, (keys, batch), unroll=unroll)
    return state, jax.tree.map(jnp.mean, metrics)
