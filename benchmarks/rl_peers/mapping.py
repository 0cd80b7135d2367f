"""The public agents' parameters as ours."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray]


def _layers(arrays: Arrays, prefix: str, name: str) -> list[dict[str, np.ndarray]]:
    """`<prefix>/<name>_0`, `_1`, ... as long as there are any."""
    found: list[dict[str, np.ndarray]] = []
    while any(path.startswith(f"{prefix}/{name}_{len(found)}/") for path in arrays):
        start = f"{prefix}/{name}_{len(found)}/"
        found.append({path.removeprefix(start): leaf for path, leaf in arrays.items() if path.startswith(start)})
    if not found:
        raise KeyError(f"{prefix}/{name}_0")
    return found


def _numbered(layers: list) -> dict[str, Any]:
    return {str(i): layer for i, layer in enumerate(layers)}


def _mlp(hidden: list, norms: list, output: dict) -> dict[str, Any]:
    return {"hidden": _numbered(hidden), "norms": _numbered(norms), "output": output}


def dqc(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """`learners.dqc`'s params."""

    def parts(module: str) -> tuple[list, list, dict]:
        dense = _layers(arrays, f"{prefix}/{module}", "Dense")
        return dense[:-1], _layers(arrays, f"{prefix}/{module}", "LayerNorm"), dense[-1]

    return {
        "policy": {"backbone": {"mlp": _mlp(*parts("actor_bc/mlp"))}},
        "value": {"mlp": _mlp(*parts("value/value_net"))},
        **{name: {"mlp": _mlp(*parts(f"{name}/value_net"))} for name in ("action_critic", "chunk_critic")},
    }


def serl_critic(arrays: Arrays, prefix: str) -> dict[str, Any]:
    hidden, norms = (_layers(arrays, f"{prefix}/network", name) for name in ("Dense", "LayerNorm"))
    (output,) = _layers(arrays, prefix, "Dense")
    return {"head": {"mlp": _mlp(hidden, norms, output)}, "encoder": {}}


def serl_actor(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Their two output layers, mean and log standard deviation, are the halves of our one."""
    hidden, norms = (_layers(arrays, f"{prefix}/network", name) for name in ("Dense", "LayerNorm"))
    mean, log_std = _layers(arrays, prefix, "Dense")
    output = {name: jnp.concatenate([mean[name], log_std[name]], axis=-1) for name in mean}
    return {"head": {"mlp": _mlp(hidden, norms, output)}, "encoder": {}}
