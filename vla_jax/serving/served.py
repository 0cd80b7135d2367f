"""What a checkpoint says about itself to those who want to use it over the network."""

from typing import Any

from vla_jax.core import errors
from vla_jax.policies.flow import FlowConfig
from vla_jax.samplers.guided import GuidanceOptions
from vla_jax.serving.keys import RequestReader
from vla_jax.training.trained import TrainedPolicy

PROTOCOL = 1


def metadata_of(policy: TrainedPolicy, reader: RequestReader) -> dict[str, Any]:
    """The first message to every client: plain values that say what to send and what comes back."""
    recipe, action = policy.recipe, policy.metadata["action"]
    backbone = recipe.policy.backbone
    return {
        "server": "vla_jax",
        "protocol": PROTOCOL,
        "policy": recipe.name,
        "cameras": list(backbone.cameras),
        "image_size": list(backbone.image_size),
        "state_dim": policy.edges.normalizer.state_dim,
        "action_names": list(action["names"]),
        "action_dim": policy.edges.normalizer.robot_action_dim,
        "action_horizon": action["horizon"],
        "execution_horizon": recipe.evaluation.execution_horizon,
        "control_hz": action["control_hz"],
        "realtime": reader.takes_previous,
        "layouts": {layout.name: list(layout.keys) for layout in reader.layouts},
    }


def guidance_of(policy: TrainedPolicy, weight: float) -> GuidanceOptions:
    """Real-time chunking with the policy's own number of flow steps; the weight is cut to what so few steps bear.

    Raises ConfigError for what is not a flow policy alone: an edit of its samples would go unnoticed.
    """
    decoder = policy.recipe.policy.decoder
    if not isinstance(decoder, FlowConfig) or policy.base_params is not policy.params:
        raise errors.ConfigError(
            f"{policy.path}: real-time chunking",
            expected="a flow policy, trained by imitation",
            found=f"{type(decoder).__name__} trained by {type(policy.recipe.learner).__name__}",
        )
    return GuidanceOptions(decoder.num_flow_steps, min(weight, float(decoder.num_flow_steps)))
