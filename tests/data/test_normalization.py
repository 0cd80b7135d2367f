import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.core.errors import ConfigError, DataError
from vla_jax.data.normalization import FieldStatistics, NormalizationConfig, Normalizer, Statistics

COLUMNS = hnp.arrays(np.float32, (20, 3), elements=st.floats(-1000, 1000, width=32))


def statistics_of(state, actions) -> Statistics:
    return Statistics(FieldStatistics.of(state), FieldStatistics.of(actions))


def test_statistics_of_a_ramp_are_known():
    field = FieldStatistics.of(np.arange(101, dtype=np.float32)[:, None])
    # 0..100: mean 50, variance (101^2 - 1) / 12 = 850, percentiles exactly 1 and 99.
    assert field.mean == (50.0,) and field.std[0] == pytest.approx(850**0.5)
    assert (field.q01, field.q99, field.min, field.max, field.count) == ((1.0,), (99.0,), (0.0,), (100.0,), 101)


def test_quantiles_map_to_minus_one_and_one():
    ramp = np.arange(101, dtype=np.float32)[:, None]
    normalizer = Normalizer.create(statistics_of(ramp, ramp))
    ends = np.array([[1.0], [50.0], [99.0]], np.float32)
    np.testing.assert_allclose(normalizer.normalize_actions(ends), [[-1], [0], [1]], atol=1e-6)
    np.testing.assert_allclose(normalizer.normalize_state(ends), [[-1], [0], [1]], atol=1e-6)


def test_z_scores_have_mean_zero_and_deviation_one():
    values = np.random.default_rng(0).normal(5, 3, (500, 2)).astype(np.float32)
    normalizer = Normalizer.create(statistics_of(values, values), NormalizationConfig(mode="z_score"))
    scores = normalizer.normalize_actions(values)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(0), 1, atol=1e-5)


@settings(deadline=None)
@given(state=COLUMNS, actions=COLUMNS, mode=st.sampled_from(["quantile", "z_score", "none"]))
def test_unnormalizing_undoes_normalizing(state, actions, mode):
    normalizer = Normalizer.create(statistics_of(state, actions), NormalizationConfig(mode, raw_action_dims=(1,)))
    normalized = normalizer.normalize_actions(actions)
    assert normalized.dtype == np.float32 and np.isfinite(normalized).all()
    np.testing.assert_allclose(normalizer.unnormalize_actions(normalized), actions, rtol=1e-4, atol=2e-3)
    np.testing.assert_array_equal(normalized[:, 1], actions[:, 1])


def test_a_constant_dim_becomes_zero_and_comes_back():
    values = np.stack([np.full(10, 0.04), np.arange(10)], axis=1).astype(np.float32)
    for mode in ("quantile", "z_score"):
        normalizer = Normalizer.create(statistics_of(values, values), NormalizationConfig(mode=mode))
        normalized = normalizer.normalize_actions(values)
        np.testing.assert_allclose(normalized[:, 0], 0, atol=1e-7)
        np.testing.assert_allclose(normalizer.unnormalize_actions(normalized), values, atol=1e-5)


@pytest.mark.parametrize("mode", ["quantile", "z_score", "none"])
def test_a_hidden_dim_is_zero_whatever_it_holds_and_the_others_stay(mode):
    values = np.random.default_rng(0).normal(5, 3, (50, 3)).astype(np.float32)
    statistics = statistics_of(values, values)
    open_, hidden = (
        Normalizer.create(statistics, NormalizationConfig(mode, raw_state_dims=(2,), hidden_state_dims=dims))
        for dims in ((), (1, 2))
    )
    for normalize in (hidden.normalize_state, jax.jit(hidden.normalize_state)):
        seen = np.asarray(normalize(values))
        assert not seen[:, 1:].any() and np.isfinite(seen).all()
        np.testing.assert_allclose(seen[:, 0], open_.normalize_state(values)[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(hidden.normalize_actions(values), open_.normalize_actions(values))
    with pytest.raises(ConfigError, match="hidden_state_dims"):
        Normalizer.create(statistics, NormalizationConfig(hidden_state_dims=(3,)))


def test_numpy_and_traced_arrays_agree_at_any_rank():
    values = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    normalizer = Normalizer.create(statistics_of(values, values))
    chunks = values.reshape(4, 2, 8, 4)
    traced = jax.jit(lambda n, x: n.unnormalize_actions(n.normalize_actions(x)))(normalizer, jnp.asarray(chunks))
    np.testing.assert_allclose(traced, chunks, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(Normalizer.normalize_state)(normalizer, chunks), normalizer.normalize_state(chunks), atol=1e-6
    )


def test_padding_of_the_models_action_dim_is_dropped():
    values = np.random.default_rng(2).normal(size=(64, 4)).astype(np.float32)
    normalizer = Normalizer.create(statistics_of(values, values))
    padded = np.concatenate([normalizer.normalize_actions(values), np.ones((64, 3), np.float32)], axis=1)
    np.testing.assert_allclose(normalizer.unnormalize_actions(padded), values, atol=1e-5)


def test_statistics_survive_the_disk_exactly(tmp_path):
    values = np.random.default_rng(3).normal(size=(64, 4)).astype(np.float32)
    statistics = statistics_of(values[:, :3], values)
    statistics.save(tmp_path / "deep" / "statistics.json")
    assert Statistics.load(tmp_path / "deep" / "statistics.json") == statistics
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["statistics.json"]


def test_missing_and_damaged_statistics_stop_the_run(tmp_path):
    with pytest.raises(DataError, match=r"(?s)no normalization statistics.*fix.*vla-jax data stats"):
        Statistics.load(tmp_path / "statistics.json")
    (tmp_path / "statistics.json").write_text('{"state": {"mean": [1]}}')
    with pytest.raises(DataError, match=r"statistics\.json: not normalization statistics"):
        Statistics.load(tmp_path / "statistics.json")


def test_wrong_widths_modes_and_numbers_are_refused():
    values = np.random.default_rng(4).normal(size=(64, 4)).astype(np.float32)
    statistics = statistics_of(values, values)
    with pytest.raises(DataError, match=r"(?s)4 dims, as in the statistics.*found\s+3"):
        Normalizer.create(statistics).normalize_state(values[:, :3])
    with pytest.raises(ConfigError, match="quantile, z_score or none"):
        NormalizationConfig(mode="minmax")
    with pytest.raises(ConfigError, match="raw_action_dims"):
        Normalizer.create(statistics, NormalizationConfig(raw_action_dims=(4,)))
    with pytest.raises(DataError, match="finite"):
        FieldStatistics.of(np.full((3, 1), np.nan))
