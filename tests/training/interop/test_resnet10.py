"""The trunk's weights by their released names, there and back."""

import jax
import numpy as np
import pytest
from flax import nnx

from vla_jax.core import errors, functional
from vla_jax.nets.pixels import ResidualTrunk
from vla_jax.training.interop import resnet10


@pytest.fixture(scope="module")
def trunk():
    return functional.describe(lambda rngs: ResidualTrunk(4, (1, 1), rngs))[1]


def their_arrays(trunk):
    leaves = jax.tree_util.tree_leaves_with_path(trunk)
    draw = np.random.default_rng(0)
    return {
        resnet10.their_name(tuple(k.key for k in path)): draw.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in leaves
    }


def test_every_parameter_finds_its_array(trunk, tmp_path):
    arrays = their_arrays(trunk)
    names = {"conv_init/kernel", "norm_init/scale", "ResNetBlock_1/conv_proj/kernel", "ResNetBlock_0/Conv_1/kernel"}
    assert names <= set(arrays)
    assert "ResNetBlock_0/conv_proj/kernel" not in arrays  # the first block changes neither width nor size
    np.savez(tmp_path / "w.npz", **arrays)
    params = resnet10.read(tmp_path / "w.npz", trunk)
    np.testing.assert_array_equal(params["blocks"]["1"]["norm2"]["bias"], arrays["ResNetBlock_1/MyGroupNorm_1/bias"])
    np.testing.assert_array_equal(params["conv"]["kernel"], arrays["conv_init/kernel"])


def test_what_does_not_fit_is_named(trunk, tmp_path):
    arrays = their_arrays(trunk)
    for change, match in (
        ({"norm_init/bias": None}, "norm_init/bias"),
        ({"norm_init/bias": np.zeros(5)}, "norm_init/bias"),
        ({"head/kernel": np.zeros(5)}, "without a place"),
    ):
        changed = {name: value for name, value in (arrays | change).items() if value is not None}
        np.savez(tmp_path / "w.npz", **changed)
        with pytest.raises(errors.CheckpointError, match=match):
            resnet10.read(tmp_path / "w.npz", trunk)


def test_the_released_depth_has_four_blocks():
    shapes = nnx.eval_shape(lambda: ResidualTrunk(64, (1, 1, 1, 1), nnx.Rngs(0)))
    assert len(shapes.blocks) == 4
