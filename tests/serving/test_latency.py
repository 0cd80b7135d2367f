import numpy as np
import pytest

from vla_jax.serving import latency
from vla_jax.serving.latency import LatencyMeter
from vla_jax.serving.metrics import Metrics


def test_quantiles_are_those_of_the_last_window_and_sums_those_of_everything():
    meter = LatencyMeter(window=101)
    meter.record({"device": 1000.0})
    for value in np.random.default_rng(0).permutation(101):
        meter.record({"device": float(value)})
    summary = meter.summaries()["device"]
    assert summary.quantiles == (50.0, 95.0, 99.0)  # of 0 to 100
    assert (summary.count, summary.total) == (102, 1000 + 5050)


def test_the_network_is_what_the_server_does_not_account_for():
    timing = {"preprocess_ms": 2.0, "queue_ms": 3.0, "infer_ms": 10.0, "total_ms": 16.0}
    parts = latency.split(0.020, timing)
    assert parts == pytest.approx(
        {
            "network": 0.004,
            "preprocessing": 0.002,
            "queue": 0.003,
            "device": 0.010,
            "total": 0.016,
            "round trip": 0.020,
        }
    )


def test_measuring_leaves_out_the_warm_up():
    times = iter(np.cumsum([0, 9, 0, 9, 0, 0.5, 0, 0.5]).tolist())
    answer = {"server_timing": {"total_ms": 400.0, "infer_ms": 100.0}}
    meter = latency.measure(lambda: answer, 2, lambda: next(times), warm_up=2)
    summaries = meter.summaries()
    assert summaries["round trip"].quantiles == pytest.approx((0.5, 0.5, 0.5)) and summaries["round trip"].count == 2
    assert summaries["network"].total == pytest.approx(0.2)
    assert "| device | 100.0 | 100.0 | 100.0 | 100.0 | 2 |" in meter.to_table()


def test_metrics_are_prometheus_text():
    metrics = Metrics()
    metrics.count_request("ok")
    metrics.count_request("ok")
    metrics.count_refused("api_key")
    metrics.count_batch(3)
    metrics.latency.record({"device": 0.25})
    metrics.gauge("connections", "Clients.", lambda: 7)
    lines = metrics.to_text().splitlines()
    for expected in (
        'vla_jax_requests_total{outcome="ok"} 2',
        'vla_jax_requests_total{outcome="bad_request"} 0',
        'vla_jax_connections_refused_total{reason="api_key"} 1',
        "vla_jax_batch_rows_total 3",
        "vla_jax_connections 7",
        'vla_jax_latency_seconds{part="device",quantile="0.99"} 0.25',
        'vla_jax_latency_seconds_count{part="device"} 1',
        "# TYPE vla_jax_latency_seconds summary",
    ):
        assert expected in lines
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
