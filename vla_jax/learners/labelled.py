"""What learners of labelled pictures share: their batch, their state, and the encoder's trunk set apart."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from vla_jax.core import errors
from vla_jax.core.types import Observation, Params


class Examples(struct.PyTreeNode):
    positives: Observation
    negatives: Observation


class ClassifierState(struct.PyTreeNode):
    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    frozen: Params = struct.field(default_factory=dict)  # the encoder's trunk, where it does not train


def balanced(batch: Examples) -> tuple[Observation, Float[Array, "b"]]:
    """Positives, then negatives, and their labels 1 and 0. Raises DataError when there are more of one kind."""
    counts = [side.state.shape[0] for side in (batch.positives, batch.negatives)]
    if counts[0] != counts[1]:
        raise errors.DataError("a batch of labelled pictures", expected="as many of both labels", found=counts)
    observation = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.positives, batch.negatives)
    return observation, jnp.repeat(jnp.array([1.0, 0.0]), counts[0])


def split_trunk(params: Params, *, frozen: bool) -> tuple[Params, Params]:
    """A classifier's parameters as what stays and what trains; with `frozen` the trunk stays."""
    if not frozen:
        return {}, params
    encoder = {name: tree for name, tree in params["encoder"].items() if name != "trunk"}
    return {"trunk": params["encoder"]["trunk"]}, {**params, "encoder": encoder}


def join_trunk(frozen: Params, params: Params) -> Params:
    return {**params, "encoder": {**params["encoder"], **frozen}}
