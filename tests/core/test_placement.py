import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from vla_jax.core import placement, runtime


def mesh(**sizes):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def test_without_a_mesh_arrays_stay_as_they_are():
    tree = {"tokens": jnp.ones((4, 3))}
    assert placement.over_batch(tree) is tree


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_examples_are_split_although_the_parameter_splits_the_features(axis):
    over = mesh(data=2 if axis == "data" else 1, fsdp=2 if axis == "fsdp" else 1, tensor=1)
    x, kernel = jnp.ones((4, 8)), jnp.ones((8, 6))

    def layer(x, kernel):
        with jax.sharding.use_abstract_mesh(over.abstract_mesh):
            return placement.over_batch(x @ kernel)

    split_features = jax.NamedSharding(over, PartitionSpec(None, axis))
    y = jax.jit(layer)(x, jax.device_put(kernel, split_features))
    assert y.sharding.shard_shape(y.shape) == (2, 6)
    assert jnp.array_equal(y, x @ kernel)


def test_a_batch_that_does_not_divide_is_left_alone():
    over = mesh(data=2, fsdp=1, tensor=1)
    with jax.sharding.use_abstract_mesh(over.abstract_mesh):
        assert "sharding_constraint" in str(jax.make_jaxpr(placement.over_batch)(jnp.ones((4, 2))))
        for shape in ((3, 2), ()):
            assert "sharding_constraint" not in str(jax.make_jaxpr(placement.over_batch)(jnp.ones(shape)))


def test_one_cpu_is_the_default_here_or_the_only_device_of_the_mesh():
    assert placement.on_one_cpu()
    with placement.elsewhere():
        assert not placement.on_one_cpu()
    for sizes, expected in ((dict(data=1, fsdp=1), True), (dict(data=2, fsdp=1), False)):
        with jax.sharding.use_abstract_mesh(mesh(**sizes).abstract_mesh):
            assert placement.on_one_cpu() is expected


def test_small_networks_run_side_by_side_on_the_cores_of_one_cpu(monkeypatch):
    small = {"heads": jax.ShapeDtypeStruct((10, 256, 256), jnp.float32), "step": jnp.zeros((), jnp.int32)}
    large = {"kernel": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    convolution = {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.float32)}
    monkeypatch.setattr(runtime, "num_cores", lambda: 2)
    assert placement.pays_side_by_side(small)
    assert not placement.pays_side_by_side(small | large) and not placement.pays_side_by_side(convolution)
    with placement.elsewhere():
        assert not placement.pays_side_by_side(small)
    with jax.sharding.use_abstract_mesh(mesh(data=2, fsdp=1).abstract_mesh):
        assert not placement.pays_side_by_side(small)
    monkeypatch.setattr(runtime, "num_cores", lambda: 1)
    assert not placement.pays_side_by_side(small)


def test_side_by_side_holds_for_what_is_traced_inside():
    assert not placement.runs_side_by_side()
    with placement.side_by_side():
        assert placement.runs_side_by_side()
        with placement.side_by_side(False):
            assert not placement.runs_side_by_side()
    assert not placement.runs_side_by_side()
