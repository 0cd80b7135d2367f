import json

import numpy as np
import pytest

from vla_jax.core import errors
from vla_jax.evaluation import charts
from vla_jax.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 0.74, [0, 0.2, 0.4, 0.6, 0.8]),
        (0.3, 2.2, [0, 0.5, 1, 1.5, 2, 2.5]),
        (-3, 12, [-5, 0, 5, 10, 15]),
        (50, 15000, [0, 5000, 10000, 15000]),
        (2, 2, [1, 1.5, 2, 2.5, 3]),  # a constant still gets a range
        (0, 0, [-0.5, 0, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low, high, ticks):
    found = charts.nice_ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert found == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12000, "12k"), (-1.5e6, "-1.5M"), (0.00031, "3.1e-4"), (2e-9, "2e-9")],
)
def test_numbers_are_short(value, text):
    assert charts.short_number(value) == text


def test_the_running_mean_is_a_window_that_skips_what_is_not_finite():
    values = np.array([1.0, 2.0, np.nan, 6.0, np.inf])
    np.testing.assert_allclose(charts.running_mean(values, 1), [1.5, 1.5, 4.0, 6.0, 6.0])
    np.testing.assert_array_equal(charts.running_mean(np.full(3, np.nan), 1), np.full(3, np.nan))
    np.testing.assert_array_equal(charts.running_mean(np.arange(4.0), 0), np.arange(4.0))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_curves_come_from_the_metrics_file(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 10, "loss": 2.0, "lr": 1e-3},
        {"step": 20, "loss": 1.0, "eval/success_rate": 0.5, "note": "saved"},
    )
    (loss,) = charts.read_curves(path)
    assert (loss.title, loss.steps, loss.values) == ("loss", (10, 20), (2.0, 1.0))
    (success,) = charts.read_curves(path, ["eval/success_rate"])
    assert (success.steps, success.values) == ((20,), (0.5,))
    with pytest.raises(errors.DataError, match="did you mean 'loss'"):
        charts.read_curves(path, ["los"])


def test_a_broken_metrics_file_is_named(tmp_path):
    with pytest.raises(errors.DataError, match="no metrics file"):
        charts.read_curves(tmp_path / "metrics.jsonl")
    path = write(tmp_path / "metrics.jsonl", {"step": 1, "loss": 2.0})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    with pytest.raises(errors.DataError, match="line 2: not JSON"):
        charts.read_curves(path)
    write(path, {"loss": 2.0})
    with pytest.raises(errors.DataError, match=r"line 1\n  expected  {\"step\": int"):
        charts.read_curves(path)


def test_a_chart_spans_the_plot_and_higher_values_are_higher():
    svg = charts.line_chart(charts.Curve("a < b", [0, 10], [0.0, 4.0]))
    assert "a &lt; b" in svg and "last 4" in svg
    # ticks 0 to 4, so the line runs from the lower left to the upper right corner of the plot
    assert 'd="M52.0,164.0L328.0,12.0"' in svg


def test_a_chart_of_a_diverged_run_leaves_gaps():
    svg = charts.line_chart(charts.Curve("loss", [0, 1, 2], [1.0, float("nan"), 2.0]))
    assert "nan" not in svg
    assert "no finite value" in charts.line_chart(charts.Curve("loss", [0], [float("inf")]))


def test_a_long_curve_does_not_bloat_the_page():
    steps = np.arange(100_000)
    assert len(charts.line_chart(charts.Curve("loss", steps, np.sin(steps)))) < 20_000


def test_values_without_steps_raise():
    with pytest.raises(errors.DataError, match="one per step"):
        charts.Curve("loss", [0, 1], [1.0])


def test_the_rate_bar_shows_rate_and_interval():
    svg = charts.rate_bar(0.5, Interval(0.4, 0.6))
    assert 'x="40.0"' in svg and 'width="20.0"' in svg and "50.0 percent" in svg
