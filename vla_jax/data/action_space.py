"""Between the chunks a policy learns and those a robot takes: statistics, and the kind of the actions.

recorded chunk --convert (action_kinds.py)--> --normalize--> what the policy learns
what the policy predicts --unnormalize--> --invert--> what the robot takes, as recorded
"""

from flax import struct
from jaxtyping import Array, Float

from vla_jax.data import action_kinds
from vla_jax.data.action_kinds import ActionKind, RelativeDims
from vla_jax.data.normalization import Normalizer


class ActionSpace(struct.PyTreeNode):
    """The actions of one dataset. `state` is the robot's at the first step of the chunk, in physical units; arrays may
    be numpy or traced, with any leading dims."""

    normalizer: Normalizer
    kind: ActionKind = struct.field(pytree_node=False, default="as recorded")
    relative_dims: RelativeDims = struct.field(pytree_node=False, default=())

    @classmethod
    def create(cls, normalizer: Normalizer, kind: ActionKind, relative_dims: RelativeDims, place: str) -> "ActionSpace":
        """Raises ConfigError, naming `place`, where the kind has no inverse: dims that the normalizer's robot does not
        have, or have twice."""
        action_kinds.check(kind, relative_dims, normalizer.robot_action_dim, normalizer.state_dim, place)
        return cls(normalizer, kind, relative_dims)

    def to_robot(self, actions: Float[Array, "*b h action_dim"], state: Float[Array, "*b s"]) -> Float[Array, "*b h a"]:
        """Actions as recorded, in the robot's units; padded dims are dropped."""
        return action_kinds.invert(self.kind, self.normalizer.unnormalize_actions(actions), state, self.relative_dims)

    def to_policy(self, actions: Float[Array, "*b h a"], state: Float[Array, "*b s"]) -> Float[Array, "*b h a"]:
        """The inverse of `to_robot`, without padding."""
        return self.normalizer.normalize_actions(action_kinds.convert(self.kind, actions, state, self.relative_dims))
