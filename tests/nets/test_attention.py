import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.nets import attention
from vla_jax.nets.attention import Rotary, Segment, attend, block_mask, rotate

KEY = jax.random.key(0)
B, N, M, H, D = 2, 3, 5, 4, 8


def inputs(kv_heads):
    q_key, k_key, v_key, mask_key = jax.random.split(KEY, 4)
    queries = jax.random.normal(q_key, (B, N, H, D))
    keys, values = (jax.random.normal(k, (B, M, kv_heads, D)) for k in (k_key, v_key))
    mask = jax.random.bernoulli(mask_key, 0.6, (B, N, M)).at[..., 0].set(True)
    return queries, keys, values, mask


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_folded_attention_is_the_textbook_formula(kv_heads):
    queries, keys, values, mask = inputs(kv_heads)
    expected = np.zeros((B, N, H, D))
    for b in range(B):
        for h in range(H):
            g = h * kv_heads // H
            logits = np.where(mask[b], queries[b, :, h] @ keys[b, :, g].T / np.sqrt(D), -np.inf)
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            expected[b, :, h] = weights @ np.asarray(values[b, :, g])
    np.testing.assert_allclose(attend(queries, [Segment(keys, values, mask)]), expected, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_folded_attention_equals_the_library_in_value_and_gradient(kv_heads):
    queries, keys, values, mask = inputs(kv_heads)

    def run(implementation):
        return jax.value_and_grad(
            lambda q, k, v: jnp.sin(attend(q, [Segment(k, v, mask)], implementation)).sum(), argnums=(0, 1, 2)
        )(queries, keys, values)

    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5), run("fold"), run("xla"))


def test_flash_attention_is_the_plain_one_on_a_cpu_and_cudnn_says_what_it_needs():
    queries, keys, values, mask = inputs(2)
    segment = Segment(keys, values, mask)
    assert jnp.array_equal(attend(queries, [segment], "flash"), attend(queries, [segment]))
    with pytest.raises(errors.ConfigError, match=r"NVIDIA GPU(?s:.*)backend cpu, float32"):
        attend(queries, [segment], "cudnn")


@pytest.mark.parametrize("implementation", ["fold", "xla"])
def test_segments_are_one_softmax_over_their_union(implementation):
    queries, keys, values, mask = inputs(2)
    halves = [Segment(keys[:, s], values[:, s], mask[..., s]) for s in (slice(0, 2), slice(2, M))]
    whole = attend(queries, [Segment(keys, values, mask)], implementation)
    assert jnp.allclose(attend(queries, halves, implementation), whole, atol=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_example_after_another_is_the_whole_batch_in_value_and_gradient(monkeypatch, kv_heads, dtype):
    queries, keys, values, mask = inputs(kv_heads)
    mask = mask.at[1, 2].set(False)  # a row without any key
    queries, keys, values = (x.astype(dtype) for x in (queries, keys, values))

    def run(limit):
        monkeypatch.setattr(attention, "_CACHE_ENTRIES", limit)

        def loss(q, k, v):
            halves = [Segment(k[:, s], v[:, s], mask[..., s]) for s in (slice(0, 2), slice(2, M))]
            return jnp.sin(attend(q, halves).astype(jnp.float32)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(queries, keys, values)

    tolerance = 1e-5 if dtype == "float32" else 3e-2
    found, expected = (jax.tree.map(lambda x: np.asarray(x, np.float32), run(limit)) for limit in (0, 2**21))
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=tolerance), found, expected)


def test_examples_are_taken_one_by_one_only_where_logits_are_many_on_one_cpu(monkeypatch):
    queries, keys, values, mask = inputs(1)

    def program():
        # a new function each time: jax remembers what it traced
        return str(jax.make_jaxpr(lambda q: attend(q, [Segment(keys, values, mask)]))(queries))

    assert "scan" not in program()
    monkeypatch.setattr(attention, "_CACHE_ENTRIES", 0)
    assert "scan" in program()
    over = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(over.abstract_mesh):
        assert "scan" not in program()


def test_keys_that_are_not_seen_have_no_influence_and_a_row_that_sees_nothing_is_finite():
    queries, keys, values, mask = inputs(1)
    seen = mask.at[:, :, 2].set(False).at[0, 1].set(False)
    out = attend(queries, [Segment(keys, values, seen)])
    changed = attend(queries, [Segment(keys.at[:, 2].set(9.0), values, seen)])
    rows = jnp.ones((B, N), bool).at[0, 1].set(False)
    assert jnp.array_equal(out[rows], changed[rows]) and jnp.isfinite(out).all()


def test_rotation_makes_products_depend_on_the_difference_of_positions_only():
    queries, keys, *_ = inputs(4)
    positions = jnp.broadcast_to(jnp.arange(N), (B, N))

    def products(shift):
        return jnp.einsum("bnhd,bmhd->bhnm", rotate(queries, positions + shift), rotate(keys[:, :N], positions + shift))

    assert jnp.allclose(products(0), products(7), atol=1e-4)
    assert jnp.allclose(rotate(queries, jnp.zeros((B, N), int)), queries)
    # first pair at position 1 turns by one radian: (1, 0) becomes (cos 1, sin 1) in entries 0 and D/2
    unit = jnp.zeros((1, 1, 1, D)).at[..., 0].set(1.0)
    turned = rotate(unit, jnp.ones((1, 1), int))[0, 0, 0]
    assert jnp.allclose(turned[jnp.array([0, D // 2])], jnp.array([np.cos(1), np.sin(1)]))


def test_three_equal_positions_turn_as_one_and_each_axis_turns_its_own_pairs():
    positions = jnp.array([[3, 5, 0]])
    for sections, interleaved in (((16, 24, 24), False), ((24, 20, 20), True)):  # of Qwen2.5-VL and Qwen3-VL
        rotary = Rotary(1e6, sections, interleaved)
        one = rotary.angles(positions, 128)
        assert jnp.array_equal(rotary.angles(jnp.repeat(positions[..., None], 3, axis=-1), 128), one)
        turned = [rotary.angles(jnp.zeros((1, 1, 3), int).at[..., axis].set(1), 128)[0, 0] > 0 for axis in range(3)]
        assert [int(x.sum()) for x in turned] == list(sections)
        axis_of_pair = np.argmax(np.array(turned), axis=0)
        if interleaved:  # in turns while all three last: time has the last 4 of its 24 pairs to itself
            assert axis_of_pair.tolist() == [0, 1, 2] * 20 + [0] * 4
        else:
            assert axis_of_pair.tolist() == [0] * 16 + [1] * 24 + [2] * 24
    with pytest.raises(errors.ConfigError, match="sections"):
        Rotary(1e6, (16, 24, 23)).angles(jnp.zeros((1, 1, 3), int), 128)


def test_the_block_mask_is_the_picture_in_its_docstring():
    block = jnp.array([[0, 0, 1, 2, 2]])
    is_real = jnp.array([[True, False, True, True, True]])
    expected = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 1, 1, 1]]
    assert jnp.array_equal(block_mask(block, is_real)[0], jnp.array(expected, bool))
