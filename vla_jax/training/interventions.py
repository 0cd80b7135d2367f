"""An operator who takes over: the given action is run, stored as the policy's, tagged, and kept as a demonstration.

    actions, extras = take_over(policy_actions, given, is_given)
    online, demonstrations = insert(online, demonstrations, rows.replace(extras=extras), valid)

So corrections enter the half of every batch that demonstrations fill. Where the operator moves the tool in the base's
frame and the policy in the tool's, `RelativeFrame.to_tool` translates before anything is stored. Source: HIL-SERL
(arXiv 2410.21845).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vla_jax.core import errors
from vla_jax.core.types import Transitions
from vla_jax.data.replay import device as replay

TAG = "intervention"  # in `Transitions.extras`


def take_over(
    actions: Float[Array, "b h a"], given: Float[Array, "b h a"], is_given: Bool[Array, "b"]
) -> tuple[Float[Array, "b h a"], dict[str, Bool[Array, "b"]]]:
    """The operator's chunk where there is one, the policy's elsewhere, and the extras that say which."""
    return jnp.where(is_given[:, None, None], given, actions), {TAG: is_given}


def insert(
    online: replay.ReplayBuffer, demonstrations: replay.ReplayBuffer, rows: Transitions, valid: Bool[Array, "b"]
) -> tuple[replay.ReplayBuffer, replay.ReplayBuffer]:
    """All valid rows into the online buffer, those of interventions into that of the demonstrations as well.

    Raises DataError for rows without the tag.
    """
    if TAG not in rows.extras:
        raise errors.DataError("rows with interventions", expected=f"extras[{TAG!r}]", found=sorted(rows.extras))
    corrections = valid & rows.extras[TAG]
    return replay.insert(online, rows, valid), replay.insert(demonstrations, rows, corrections)
