"""Weights of SERL's ResNet-10 trunk from a flat .npz: what `nets/pixels.py` calls `trunk`.

    params = read("resnet10.npz", shapes)      # {"conv_init/kernel": ..., "ResNetBlock_0/Conv_0/kernel": ..., ...}
    state = learner.with_trunk(state, params)

Names are those of the released weights (a pickle of nested dicts; save it flat, joined by slashes). The weights, made
on ImageNet, are not part of this package.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.core import errors
from vla_jax.core.types import Params

_BLOCK = {
    "conv1": "Conv_0",
    "norm1": "MyGroupNorm_0",
    "conv2": "Conv_1",
    "norm2": "MyGroupNorm_1",
    "project": "conv_proj",
    "project_norm": "norm_proj",
}


def their_name(path: tuple[str, ...]) -> str:
    """The released name of one of our parameters, both by their path: `("blocks", "0", "conv1", "kernel")`."""
    if path[0] == "blocks":
        _, number, layer, leaf = path
        return f"ResNetBlock_{number}/{_BLOCK[layer]}/{leaf}"
    return f"{path[0]}_init/{path[1]}"


def read(path: str | Path, trunk: Params) -> Params:
    """The parameters in the file, in the structure of `trunk` (arrays or shapes).

    Raises CheckpointError for one that is missing or of another shape, and for any that has no place.
    """
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def take(where, like):
        name = their_name(tuple(entry.key for entry in where))
        found = arrays.pop(name, None)
        if found is None or found.shape != like.shape:
            raise errors.CheckpointError(
                f"{path}: {name}", expected=like.shape, found=None if found is None else found.shape
            )
        return jnp.asarray(found, jnp.float32)

    params = jax.tree_util.tree_map_with_path(take, trunk)
    if arrays:
        raise errors.CheckpointError(f"{path}: parameters without a place", found=sorted(arrays))
    return params
