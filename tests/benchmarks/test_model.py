"""benchmarks/model.py: what it counts, how rounds combine, and that our side runs."""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "model_peers")]  # scripts, not packages

import model  # noqa: E402
import shapes  # noqa: E402
import timing  # noqa: E402


@pytest.fixture
def ours():
    """The side's own module: benchmarks/loader_peers has a script of that name, too."""
    script = ROOT / "benchmarks" / "model_peers" / "ours.py"
    spec = importlib.util.spec_from_file_location("model_peers_ours", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_combine_to_medians_with_the_first_one_cold():
    one = {"num_params": 3, "flops": 10.0, "jax": "1", "device": "cpu"}
    rounds = [{**one, "seconds": s, "compile_s": c} for s, c in ((1.0, 30.0), (4.0, 2.0), (2.0, 4.0))]
    found = model.combine(rounds)
    assert (found["seconds"], found["compile_cold_s"], found["compile_warm_s"]) == (2.0, 30.0, 3.0)
    assert model.combine(rounds[:1])["compile_warm_s"] is None


def test_ratios_are_above_one_where_ours_is_faster_and_shares_are_of_the_peak():
    def side(seconds):
        return {"train_b8": {"seconds": seconds, "compile_cold_s": 10.0, "compile_warm_s": None, "flops": 6.0}}

    results = {"ours": side(2.0), "openpi": side(3.0)}
    assert model.ratios(results) == {"ours_train_b8_vs_openpi": 1.5, "ours_train_b8_compile_cold_vs_openpi": 1.0}
    assert model.shares(results, 30.0) == pytest.approx(
        {"ours_train_b8_share_of_peak": 0.1, "openpi_train_b8_share_of_peak": 6 / 3 / 30}
    )


def test_sides_on_other_versions_of_jax_are_not_compared():
    with pytest.raises(RuntimeError, match="different versions of JAX"):
        model.check_versions({"ours": {"a": {"jax": "1"}}, "openpi": {"a": {"jax": "2"}}})


def test_the_layer_is_counted_as_the_compiler_counts_it(ours, monkeypatch):
    small = tuple(dataclasses.replace(expert, width=128, mlp_dim=1024, head_dim=32) for expert in shapes.PUBLISHED)
    monkeypatch.setattr(shapes, "PUBLISHED", small)
    monkeypatch.setattr(shapes, "LAYER_TOKENS", (96, 32))
    case = ours.layer_case("layer_b2", "float32", dict(unroll=True))
    counted = jax.jit(case.step).lower(case.state, *case.inputs).cost_analysis()["flops"]
    # The compiler also counts softmax, norms and activations.
    assert shapes.layer_flops(2) < counted < 1.1 * shapes.layer_flops(2)


def test_our_side_runs(ours, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "IMAGE_SIZE", 28)
    monkeypatch.setattr(shapes, "EXPERT", dataclasses.replace(shapes.EXPERT, depth=1))
    case = ours.policy_case("sample_b1", "float32", dict(unroll=True))
    timing.run(case, types.SimpleNamespace(repeats=1))
    result = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert result["finite"] and result["seconds"] > 0 and result["compile_s"] > 0
    assert result["num_params"] > 100_000
