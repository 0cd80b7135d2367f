"""Low-rank adapters: nothing at first, whole fine-tuning at full rank, the same merged or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import examples
from vla_jax.core import errors, functional
from vla_jax.nets.vla_transformer import VlaTransformer
from vla_jax.training import adapters, kernels
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten, nest
from vla_jax.training.kernels import KernelDims

DENSE = {"layer/kernel": KernelDims((3, 5), 0, 1)}


def constructor(rngs):
    return VlaTransformer(examples.transformer_config(), rngs)


@pytest.fixture(scope="module")
def transformer():
    net, params = examples.init(constructor, jax.random.key(0))
    found = kernels.find(params, functional.logical_axes(constructor))
    sites = adapters.sites(found, (Lora("mixture/*kernel", rank=2, alpha=3.0),), list(flatten(params)))
    return net, params, sites


def decode(net):
    observation = examples.observation(jax.random.key(1))
    tokens = jax.random.normal(jax.random.key(2), (2, 3, 12))

    def run(params):
        bound = net.bind(params)
        return bound.suffix(bound.prefix(observation), tokens)

    return run


def random(tree):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten([0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def test_one_kernel_gets_scale_times_a_times_b():
    sites = adapters.sites(DENSE, (Lora("layer/kernel", rank=2, alpha=6.0),), list(DENSE))
    kernel, factors = random({"layer": {"kernel": jnp.zeros((3, 5))}}), random(adapters.init(jax.random.key(0), sites))
    a, b = factors["layer"]["kernel"]["a"], factors["layer"]["kernel"]["b"]
    expected = kernel["layer"]["kernel"] + 3.0 * np.asarray(a) @ np.asarray(b)  # alpha / rank = 3
    for tree in (adapters.adapt(kernel, factors, sites), adapters.merge(kernel, factors, sites)):
        np.testing.assert_allclose(tree["layer"]["kernel"][...], expected, rtol=1e-5)


def test_rank_stabilized_adapters_scale_with_the_root_of_the_rank():
    assert Lora("*", rank=16, alpha=8.0).scale == 0.5
    assert Lora("*", rank=16, alpha=8.0, rank_stabilized=True).scale == 2.0


def test_fresh_adapters_change_nothing_and_random_ones_are_the_same_merged_or_not(transformer):
    net, params, sites = transformer
    assert len(sites) == 14  # query, key, value, attention_out, gate, up, down of both experts
    fresh = adapters.init(jax.random.key(4), sites)
    query = fresh["mixture"]["prefix_layers"]["query"]["kernel"]
    assert query["a"].shape == (2, 16, 2) and query["b"].shape == (2, 2, 32)  # every layer has its own
    assert (query["a"][0] != query["a"][1]).all() and not query["b"].any()
    run = jax.jit(decode(net))
    expected = run(params)
    np.testing.assert_array_equal(run(adapters.adapt(params, fresh, sites)), expected)

    changed = random(fresh)
    unmerged = run(adapters.adapt(params, changed, sites))
    merged = adapters.merge(params, changed, sites)
    np.testing.assert_allclose(run(merged), unmerged, atol=1e-5)
    assert jnp.abs(unmerged - expected).max() > 0.1
    untouched = [path for path in flatten(params) if path not in sites]
    for path in untouched:
        assert flatten(merged)[path] is flatten(params)[path]


def test_gradients_are_those_of_the_kernels_seen_through_the_other_factor(transformer):
    net, params, sites = transformer
    run, factors = decode(net), random(adapters.init(jax.random.key(4), sites))
    merged = adapters.merge(params, factors, sites)

    def loss(params):
        return jnp.sin(run(params)).sum()

    by_factor = jax.jit(jax.grad(lambda factors: loss(adapters.adapt(params, factors, sites))))(factors)
    by_kernel = jax.jit(jax.grad(loss))(merged)
    assert jax.tree.structure(by_factor) == jax.tree.structure(factors)  # adapters alone
    for path in ("mixture/prefix_layers/query/kernel", "mixture/suffix_layers/attention_out/kernel"):
        dims, given, found = sites[path].dims, flatten(factors), flatten(by_factor)
        flat = flatten(by_kernel)[path].reshape(*dims.stacked, dims.inputs, dims.outputs)
        # d loss / d a = scale * d loss / d kernel @ b^T, and the mirror image; scale = 3 / 2
        np.testing.assert_allclose(found[f"{path}/a"], 1.5 * flat @ given[f"{path}/b"].mT, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[f"{path}/b"], 1.5 * given[f"{path}/a"].mT @ flat, rtol=1e-3, atol=1e-4)


def test_at_full_rank_on_a_zero_kernel_adapters_are_whole_fine_tuning():
    """With a = 1, scale 1 and the kernel zero, b is the kernel: the same losses and the same steps."""
    dims = KernelDims((3, 5), 0, 1)
    sites = {"layer/kernel": adapters.Site(dims, 3, Lora("*", rank=3, alpha=3.0).scale)}
    x, y = jax.random.normal(jax.random.key(0), (8, 3)), jax.random.normal(jax.random.key(1), (8, 5))
    zero = {"layer": {"kernel": jnp.zeros((3, 5))}}

    def loss(params):
        return jnp.square(x @ params["layer"]["kernel"][...] - y).mean()

    def adapted(b):
        return adapters.adapt(zero, {"layer": {"kernel": {"a": jnp.eye(3), "b": b}}}, sites)

    kernel = b = jnp.zeros((3, 5))
    for _ in range(20):
        kernel = kernel - 0.5 * jax.grad(lambda kernel: loss({"layer": {"kernel": kernel}}))(kernel)
        b = b - 0.5 * jax.grad(lambda b: loss(adapted(b)))(b)
    np.testing.assert_allclose(adapted(b)["layer"]["kernel"][...], kernel, rtol=1e-5)
    assert loss({"layer": {"kernel": kernel}}) < 0.9 * loss(zero)


def test_adapters_are_saved_alone_and_only_load_where_they_fit(transformer, tmp_path):
    _, _, sites = transformer
    changed = random(adapters.init(jax.random.key(4), sites))
    adapters.save(tmp_path / "lora", changed, sites)
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"model.safetensors"}
    loaded = adapters.load(tmp_path / "lora", sites)
    jax.tree.map(np.testing.assert_array_equal, loaded, changed)
    name, site = next(iter(sites.items()))
    with pytest.raises(errors.CheckpointError, match="other adapters than asked for, 2 tensors differ"):
        adapters.load(tmp_path / "lora", {**sites, name: site._replace(rank=3)})
    with pytest.raises(errors.CheckpointError, match="another scale"):
        adapters.load(tmp_path / "lora", {**sites, name: site._replace(scale=9.0)})


def test_the_first_pattern_takes_a_kernel_and_impossible_ones_are_refused():
    paths = ["a/kernel", "a/bias", "b/kernel"]
    found = {path: KernelDims((2, 2), 0, 1) for path in paths if path.endswith("kernel")}
    sites = adapters.sites(found, (Lora("a/kernel", rank=1), Lora("*kernel", rank=2)), paths)
    assert {path: site.rank for path, site in sites.items()} == {"a/kernel": 1, "b/kernel": 2}
    with pytest.raises(errors.ConfigError, match="matches 'a/bias'"):
        adapters.sites(found, (Lora("a/*"),), paths)
    with pytest.raises(errors.ConfigError, match=r"matches nothing\n.*did you mean 'b/kernel'"):
        adapters.sites(found, (Lora("bb/kernel"),), paths)
    with pytest.raises(errors.ConfigError, match="only kernels of earlier ones"):
        adapters.sites(found, (Lora("*kernel"), Lora("a/kernel")), paths)
    with pytest.raises(errors.ConfigError, match="rank of at least 1"):
        Lora("*", rank=0)


def test_adapted_trees_are_ordinary_pytrees():
    sites = adapters.sites(DENSE, (Lora("*kernel", rank=2),), list(DENSE))
    params = nest({"layer/kernel": jnp.ones((3, 5))})
    adapted = adapters.adapt(params, adapters.init(jax.random.key(0), sites), sites)
    halved = jax.tree.map(lambda leaf: leaf / 2, adapted)
    np.testing.assert_array_equal(halved["layer"]["kernel"][0], 0.5)
