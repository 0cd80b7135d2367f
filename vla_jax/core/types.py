"""The batches that travel between rooms, as registered pytrees.

Letters of the shapes: `*b` leading batch dims, t history, h action horizon, a action dim, s state, l prompt tokens,
i instructions. Masks are True where real. Images stay uint8 until they are inside the jit.
"""

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

Metrics = dict[str, Float[Array, ""]]
Params = dict[str, Any]  # a plain nested dict of arrays, keys are strings


class Observation(struct.PyTreeNode):
    """What a policy sees. A history adds a time axis `t` right after the batch dims.

    `state` is normalized with the statistics of the data wherever it meets a network.
    """

    images: dict[str, UInt8[Array, "*b height width 3"]]
    image_mask: dict[str, Bool[Array, "*b"]]  # False: this camera is absent in this example
    state: Float[Array, "*b s"]
    prompt: Int[Array, "*b l"]
    prompt_mask: Bool[Array, "*b l"]


class Demonstrations(struct.PyTreeNode):
    """A batch for imitation."""

    observation: Observation
    actions: Float[Array, "*b h a"]  # normalized
    action_mask: Bool[Array, "*b h a"]  # False: past the end of the episode, or an unused dim
    weight: Float[Array, "*b"]
    future: Observation | None = None  # some steps ahead; its image_mask is False past the end of the episode
    goal: Observation | None = None  # one that the episode reaches later


class Transitions(struct.PyTreeNode):
    """A batch for reinforcement learning; one row is one executed chunk.

    `discounts` is the task's own: 1 while it goes on and 0 from termination on; a time limit leaves it at 1.
    `observation` may be what the learner's `embed` made of one.
    """

    observation: Any
    actions: Float[Array, "*b h a"]
    rewards: Float[Array, "*b h"]
    discounts: Float[Array, "*b h"]
    action_mask: Bool[Array, "*b h"]  # False: the step was not run, because the episode had ended
    next_observation: Any
    extras: dict[str, Array]
    goal: Any = None  # an observation that the rewards are about


class PromptTable(struct.PyTreeNode):
    """The tokenized instructions of a suite; row `i` belongs to instruction `i`."""

    tokens: Int[Array, "i l"]
    mask: Bool[Array, "i l"]
