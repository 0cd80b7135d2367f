"""What a checkpoint says about itself to those who want to use it over the network."""

import dataclasses
from typing import Any

from vla_jax.core import errors
from vla_jax.policies.flow import FlowConfig
from vla_jax.samplers.guided import GuidanceOptions
from vla_jax.serving.keys import RequestReader
from vla_jax.training.trained import TrainedPolicy

PROTOCOL = 1
GUIDANCE_WEIGHT = 5.0  # the paper's beta


def metadata_of(
    policy: TrainedPolicy, reader: RequestReader, guidance: GuidanceOptions | None = None
) -> dict[str, Any]:
    """The first message to every client, plain values: the checkpoint's contract, what to send and what comes back.
    `robots.require_fit` compares it with a robot."""
    recipe, action = policy.recipe, policy.metadata["action"]
    backbone, resize = recipe.policy.backbone, policy.edges.resize
    return {
        "server": "vla_jax",
        "protocol": PROTOCOL,
        "policy": recipe.name,
        "cameras": list(backbone.cameras),
        "image_size": list(backbone.image_size),
        "resize": None if resize is None else resize[2],  # None: training saw pictures of this size and no others
        "state_dim": policy.edges.normalizer.state_dim,
        "state_names": list(policy.metadata.get("state", {}).get("names", ())),
        "action_names": list(action["names"]),
        "action_dim": policy.edges.normalizer.robot_action_dim,
        "action_horizon": action["horizon"],
        "execution_horizon": recipe.evaluation.execution_horizon,
        "control_hz": action["control_hz"],
        "normalization": dataclasses.asdict(recipe.data.normalization),
        "realtime": reader.takes_previous,
        "guidance_weight": None if guidance is None else guidance.max_weight,
        "layouts": {
            layout.name: {
                "cameras": dict(layout.cameras),
                "state": list(layout.state_keys),
                "optional": [key for key, camera in layout.cameras if camera in reader.optional_cameras],
            }
            for layout in reader.layouts
        },
    }


def guidance_of(policy: TrainedPolicy, weight: float | None = None) -> GuidanceOptions:
    """Real-time chunking with the policy's own number of flow steps. `weight` is the paper's beta (arXiv 2506.07339,
    eq. 2); without it, the paper's 5, or the number of flow steps where that is smaller.

    Raises ConfigError for a weight above the number of flow steps: an Euler step of `1 / num_flow_steps` with it would
    move the guess past the actions it is held to. And for what is not a flow policy alone: an edit of its samples would
    go unnoticed.
    """
    decoder = policy.recipe.policy.decoder
    if not isinstance(decoder, FlowConfig) or policy.base_params is not policy.params:
        raise errors.ConfigError(
            f"{policy.path}: real-time chunking",
            expected="a flow policy, trained by imitation",
            found=f"{type(decoder).__name__} trained by {type(policy.recipe.learner).__name__}",
        )
    limit = float(decoder.num_flow_steps)
    if weight is not None and not 0 <= weight <= limit:
        raise errors.ConfigError(
            f"{policy.path}: guidance weight",
            expected=f"0 to {limit:g}, the policy's flow steps",
            found=weight,
            fix=f"--guidance-weight {limit:g}, which removes the whole difference in one step, or a policy with more",
        )
    return GuidanceOptions(decoder.num_flow_steps, min(GUIDANCE_WEIGHT, limit) if weight is None else weight)
