"""Arrays go where the table says, and everything derived from a parameter goes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vla_jax.core import errors
from vla_jax.training import sharding
from vla_jax.training.sharding import MeshConfig


def _spec(shape, mesh, names=None, min_size=1, path="kernel"):
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
    return sharding.param_shardings(params, mesh, {path: names} if names else None, fsdp_min_size=min_size)[path].spec


def test_a_free_data_axis_takes_the_remaining_devices():
    assert dict(sharding.make_mesh(MeshConfig(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert sharding.make_mesh(MeshConfig(data=1)).devices.size == 1


@pytest.mark.parametrize("config", [MeshConfig(fsdp=3), MeshConfig(data=16), MeshConfig(fsdp=16)])
def test_a_mesh_that_does_not_fit_says_how_many_devices_there_are(config):
    with pytest.raises(errors.ConfigError, match="8 devices"):
        sharding.make_mesh(config)


def test_two_free_axes_are_refused():
    with pytest.raises(errors.ConfigError, match="at most one -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_names_choose_the_axis_and_fsdp_takes_the_largest_dim_left():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    assert _spec((8, 16), mesh, ("embed", "mlp")) == P("fsdp", "tensor")
    assert _spec((16, 8), mesh, ("mlp", None)) == P("tensor", "fsdp")
    assert _spec((4, 6, 8), mesh) == P(None, None, "fsdp")
    assert _spec((4, 6, 7), mesh) == P(None, "fsdp")  # 7 does not divide
    assert _spec((3, 5), mesh) == P()
    assert _spec((3, 8), mesh, ("mlp", "embed")) == P(None, "fsdp")  # a name whose dim does not divide stays whole
    assert _spec((8, 8), mesh, ("embed", "embed")) == P("fsdp")  # a mesh axis splits one dim only
    assert _spec((8, 16), mesh, ("embed", "mlp"), min_size=1000) == P(None, "tensor")  # too small to gather
    assert _spec((5, 8, 16), mesh, ("embed", "mlp")) == P(None, "fsdp", "tensor")  # an ensemble's leading dim


def test_fsdp_cuts_the_widest_dim_when_its_own_pieces_are_narrower_than_a_tile():
    mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
    assert _spec((256, 4096), mesh, ("embed", "mlp")) == P(None, "fsdp")  # 32 columns each would be padded to 128
    assert _spec((2, 4096, 256), mesh, ("layers", "mlp", "embed")) == P(None, "fsdp")
    assert _spec((1024, 4096), mesh, ("embed", "mlp")) == P("fsdp")  # 128 each
    assert _spec((256, 8, 64), mesh, ("embed", "heads", "head_dim")) == P("fsdp")  # nothing is wider
    assert _spec((4096, 256), mesh, ("vocab", "embed")) == P(None, "fsdp")  # a lookup wants its vocabulary whole
    assert _spec((256, 4096), sharding.make_mesh(MeshConfig(1, 4, 2)), ("embed", "mlp")) == P("fsdp", "tensor")


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(errors.ConfigError, match=r"'head/kernel' has an unknown logical axis 'embd'\n.*'embed'"):
        sharding.param_shardings({}, sharding.make_mesh(MeshConfig()), {"head": {"kernel": ("embd",)}})


def test_moments_and_averages_follow_their_parameter():
    mesh = sharding.make_mesh(MeshConfig(1, 4, 2))
    params = {"head": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)}}
    state = {"params": params, "ema_params": params, "opt_state": optax.adam(1e-3).init(params)}
    shardings = sharding.param_shardings(state, mesh, {"head": {"kernel": ("embed", "mlp")}}, fsdp_min_size=10)
    kernels = {
        leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)
        if sharding.path_name(path).endswith("kernel")
    }
    assert kernels == {P("fsdp", "tensor")} and shardings["opt_state"][0].count.spec == P()

    lines = sharding.report(state, shardings).splitlines()
    assert lines[0].split() == ["ema_params/head/bias", "float32[6]", "copied", "0.000"]
    assert "opt_state/0/mu/head/kernel" in lines[4] and "fsdp, tensor" in lines[4]

    placed = sharding.shard_state(state, shardings)
    assert placed["params"]["head"]["kernel"].addressable_shards[0].data.shape == (2, 3)
    # One array at two places would be donated twice.
    pointers = [
        placed[name]["head"]["kernel"].addressable_shards[0].data.unsafe_buffer_pointer()
        for name in ("params", "ema_params")
    ]
    assert pointers[0] != pointers[1]


def test_batches_are_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    placed = sharding.place_batch({"x": np.arange(8.0), "image": np.zeros((4, 2, 2, 3), np.uint8)}, mesh)
    assert placed["x"].addressable_shards[0].data.shape == (2,) and placed["image"].dtype == np.uint8
    assert sharding.place_batch(placed, mesh)["x"] is placed["x"]
    with pytest.raises(errors.ConfigError, match=r"'x' cannot be split over the mesh\n.*data \* fsdp = 4"):
        sharding.place_batch({"x": np.arange(6.0)}, mesh)
