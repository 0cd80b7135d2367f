import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.core import functional, placement


class Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.linear(x))


class Tower(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(width, rngs) for _ in range(2)])
        self.scale = nnx.Param(jnp.ones((width,)), logical_axes=("embed",))

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x * self.scale[...][None]


def test_params_are_a_plain_dict_with_string_keys_and_bind_restores_the_module():
    net, params = functional.init(lambda rngs: Tower(4, rngs), jax.random.key(0))
    assert set(params) == {"blocks", "scale"} and set(params["blocks"]) == {"0", "1"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    x = jnp.ones((2, 4))
    expected = x
    for i in "01":
        linear = params["blocks"][i]["linear"]
        expected = jax.nn.relu(expected @ linear["kernel"] + linear["bias"][None])
    assert jnp.allclose(jax.jit(lambda p, x: net.bind(p)(x))(params, x), expected, atol=1e-6)


def test_describe_allocates_nothing_and_agrees_with_init():
    net, params = functional.init(lambda rngs: Tower(4, rngs), jax.random.key(0))
    same_net, shapes = functional.describe(lambda rngs: Tower(4, rngs))
    assert same_net == net
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_ensemble_members_differ_and_each_equals_its_own_call():
    net, params = functional.init_ensemble(lambda rngs: Tower(4, rngs), jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (2, 4))
    out = functional.apply_ensemble(net, params, lambda member: member(x))
    assert out.shape == (3, 2, 4)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        assert jnp.allclose(out[i], net.bind(member)(x), atol=1e-6)
    assert not jnp.allclose(out[0], out[1])


def test_members_side_by_side_are_written_out_and_have_the_values_and_gradients_of_one_vmap():
    net, params = functional.init_ensemble(lambda rngs: Tower(4, rngs), jax.random.key(0), 3)
    x = jax.random.normal(jax.random.key(1), (2, 4))

    def loss(params):
        values = functional.apply_ensemble(net, params, lambda member: {"y": member(x), "mean": member(x).mean()})
        return jnp.square(values["y"]).sum() + values["mean"].sum(), values

    def products(traced):
        return str(traced).count("dot_general")

    graded = jax.value_and_grad(loss, has_aux=True)
    together, at_once = jax.jit(graded)(params), products(jax.make_jaxpr(loss)(params))
    with placement.side_by_side():
        apart, written_out = graded(params), products(jax.make_jaxpr(lambda params: loss(params))(params))
    assert written_out == 3 * at_once
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), apart, together)


def test_logical_axes_follow_the_parameter_tree():
    axes = functional.logical_axes(lambda rngs: Tower(4, rngs))
    assert axes["scale"] == ("embed",)
    assert axes["blocks"]["0"]["linear"]["kernel"] == (None, None)


def test_a_module_with_other_state_is_refused():
    class Counter(nnx.Module):
        def __init__(self, rngs):
            self.count = nnx.Variable(jnp.zeros(()))

    with pytest.raises(TypeError, match=r"only nnx\.Param"):
        functional.init(lambda rngs: Counter(rngs), jax.random.key(0))


@pytest.mark.parametrize("number", [1, 3])
def test_draws_are_those_of_a_vmap_also_when_there_is_one(number):
    x, y = jnp.arange(float(2 * number)).reshape(number, 2), jnp.arange(float(number))
    found = functional.each_draw(lambda x, y: (x * y, y + 1), x, y)
    jax.tree.map(np.testing.assert_array_equal, found, jax.vmap(lambda x, y: (x * y, y + 1))(x, y))
