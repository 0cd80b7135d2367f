import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nets import examples
from vla_jax.core import errors
from vla_jax.nets.qwen_vision import QwenVision, QwenVisionConfig, arrange, interpolation
from vla_jax.nets.siglip import join_neighbours

KEY = jax.random.key(0)
_SIZES = dict(image_size=(24, 40), width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, out_width=12)
OLD = QwenVisionConfig(generation="qwen2.5", window_size=16, full_layers=(0,), **_SIZES)
NEW = QwenVisionConfig(generation="qwen3", position_grid=5, deepstack_layers=(1, 0), **_SIZES)
IMAGES = jax.random.randint(KEY, (2, 24, 40, 3), 0, 256).astype(jnp.uint8)


@functools.cache
def make(config, **runs):
    return examples.init(lambda rngs: QwenVision(config, rngs, **runs), KEY)


def see(config, images=IMAGES, params=None, **runs):
    net, initial = make(config, **runs)
    return jax.jit(lambda params: net.bind(params)(images, jnp.float32))(params or initial)


def test_patches_stand_as_in_the_picture_of_the_docstring():
    places = arrange(dataclasses.replace(OLD, image_size=(16, 32)))
    order = np.argsort(places.patch).reshape(4, 8)
    assert order.tolist() == [
        [0, 1, 4, 5, 16, 17, 20, 21],
        [2, 3, 6, 7, 18, 19, 22, 23],
        [8, 9, 12, 13, 24, 25, 28, 29],
        [10, 11, 14, 15, 26, 27, 30, 31],
    ]
    assert places.num_windows == 2 and places.is_real.all()
    assert places.token.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]  # row by row again
    # A window larger than the picture is the picture, without padding.
    assert arrange(dataclasses.replace(OLD, window_size=800)).is_real.size == 60


def test_attention_stays_in_its_window_but_for_the_full_layers():
    # 3x5 tokens in windows of 2x2: pixels of the last window, a single token at the corner, are changed.
    changed = IMAGES.at[:, 16:, 32:].set(255 - IMAGES[:, 16:, 32:])
    both = jnp.concatenate([IMAGES, changed])

    def moved(full_layers):
        old, new = jnp.split(see(dataclasses.replace(OLD, full_layers=full_layers), both).tokens, 2)
        return jnp.abs(new - old).max((0, 2)).reshape(3, 5) > 0

    assert moved(()).tolist() == [[False] * 5, [False] * 5, [False] * 4 + [True]]
    assert moved((1,)).all()
    # One window over the whole picture is full attention; the same parameters serve both.
    whole = see(dataclasses.replace(OLD, window_size=0, full_layers=()))
    all_full = see(dataclasses.replace(OLD, full_layers=(0, 1)))
    np.testing.assert_allclose(whole.tokens, all_full.tokens, atol=1e-5)


def test_learned_positions_are_interpolated_between_corners():
    # Bilinear interpolation has linear tables exactly: entry (i, j) holds i and 10 j of 5x5, the grid is 6x10.
    places = arrange(NEW)
    near, weight = interpolation(NEW, places)
    i, j = np.divmod(near, 5)
    row, column = np.divmod(places.patch, 10)
    np.testing.assert_allclose((weight * i).sum(1), row * 4 / 5, atol=1e-6)
    np.testing.assert_allclose((weight * j).sum(1), column * 4 / 9, atol=1e-6)
    same = dataclasses.replace(NEW, image_size=(40, 40), position_grid=10)
    near, weight = interpolation(same, arrange(same))
    assert np.array_equal(near[:, 0], arrange(same).patch) and np.array_equal(weight[:, 0], np.ones(100))


def test_a_picture_is_a_film_of_two_equal_frames():
    net, params = make(NEW)
    patches = join_neighbours(jax.random.normal(KEY, (2, 24, 40, 3)), 4).reshape(2, 60, 48)
    twice = jnp.concatenate([patches, patches], axis=-1)  # the kernel reads time first
    model = net.bind(params)
    np.testing.assert_allclose(model._embed(patches), model.patch(twice), atol=1e-5)


def test_deepstack_reads_the_layers_in_the_order_of_the_config():
    seen = see(NEW)
    assert seen.tokens.shape == (2, 15, 12) and seen.added.shape == (2, 2, 15, 12)
    params = make(NEW)[1]
    swapped = {**params, "deepstack": jax.tree.map(lambda x: x[::-1], params["deepstack"])}
    other = see(dataclasses.replace(NEW, deepstack_layers=(0, 1)), params=swapped)
    np.testing.assert_allclose(other.added[::-1], seen.added, atol=1e-6)


def test_scanned_and_rematerialized_layers_compute_the_same_with_the_same_gradient():
    config = dataclasses.replace(OLD, deepstack_layers=(0,))
    _, params = make(config)

    def gradient(**runs):
        net, _ = make(config, **runs)

        def loss(params):
            return sum((x**2).sum() for x in net.bind(params)(IMAGES, jnp.float32) if x is not None)

        return jax.jit(jax.grad(loss))(params)

    plain, scanned = gradient(unroll=True), gradient(remat=True)
    plain, scanned = jax.device_get((jax.tree.leaves(plain), jax.tree.leaves(scanned)))
    scale = max(np.abs(x).max() for x in plain)
    for a, b in zip(plain, scanned, strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0 and np.abs(a - b).max() < 1e-5 * scale


def test_impossible_configs_are_named():
    for wrong in (
        dict(image_size=(24, 36)),
        dict(window_size=12),
        dict(num_heads=8),
        dict(full_layers=(2,)),
        dict(deepstack_layers=(1, 1)),
        dict(generation="qwen2"),
    ):
        with pytest.raises(errors.ConfigError, match="QwenVisionConfig"):
            dataclasses.replace(OLD, **wrong)
