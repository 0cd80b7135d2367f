"""benchmarks/rl.py: what it counts, how it compares, and that our side runs."""

import dataclasses
import importlib.util
import itertools
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.losses import td

ROOT = Path(__file__).parents[2] / "benchmarks"
sys.path[:0] = [str(ROOT), str(ROOT / "rl_peers"), str(ROOT / "model_peers")]  # scripts, not packages

import mapping  # noqa: E402
import rl  # noqa: E402
import sizes  # noqa: E402
import timing  # noqa: E402

DQC = sizes.DQCSize((24, 24), state_dim=5, goal_dim=3, action_dim=2, backup_horizon=4, action_horizon=2, batch_size=64)
SERL = sizes.SERLSize((24, 24), state_dim=5, action_dim=3, num_critics=4, critic_updates=2, batch_size=8)


@pytest.fixture
def ours(monkeypatch):
    """The side's own module, at small sizes: other benchmarks have a script of that name, too."""
    spec = importlib.util.spec_from_file_location("rl_peers_ours", ROOT / "rl_peers" / "ours.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sizes.DQC_SIZES, "2x256", DQC)
    monkeypatch.setattr(sizes, "SERL", SERL)
    return module


def test_ratios_are_against_the_faster_public_side_and_a_scan_against_its_calls():
    def side(seconds, scanned):
        return {"dqc_2x256": {"seconds": seconds}, "dqc_2x256_scan10": {"seconds": scanned}}

    results = {"ours": side(2.0, 10.0), "public": side(5.0, 50.0), "public_default": side(3.0, 60.0)}
    assert rl.ratios(results) == {
        "ours_dqc_2x256_vs_public": 1.5,
        "ours_dqc_2x256_scan10_vs_public": 5.0,
        "ours_dqc_2x256_scanned_vs_called": 2.0,
        "public_dqc_2x256_scanned_vs_called": 1.0,
        "public_default_dqc_2x256_scanned_vs_called": 0.5,
    }


def test_rates_count_updates_of_critics():
    per_second, shares = rl.rates({"ours": {"serl_utd20": {"seconds": 2.0}}}, peak=sizes.flops("serl_utd20", False))
    assert per_second == {"ours_serl_utd20": 10.0}
    assert shares == {"ours_serl_utd20_share_of_peak": 0.5}


def test_products_are_counted_as_the_compiler_counts_them(ours):
    """It also counts norms, activations, optimizer and draws, which are small for a wide net and a large batch."""
    wide = dataclasses.replace(DQC, hidden_dims=(256, 256), batch_size=256)
    sizes.DQC_SIZES["2x256"] = wide
    case = ours.dqc_case("dqc_2x256")
    counted = jax.jit(case.step).lower(case.state, *case.inputs).cost_analysis()["flops"]
    assert wide.flops() < counted < 1.2 * wide.flops()


def test_serl_evaluates_all_target_heads_and_ours_two():
    """One forward pass of eight critics of [14, 256, 256, 1] on 20 minibatches of 256."""
    gap = sizes.flops("serl_utd20", True) - sizes.flops("serl_utd20", False)
    assert gap == 8 * 20 * 256 * 2 * (14 * 256 + 256 * 256 + 256)


def test_our_batch_has_the_public_agents_returns_and_bootstraps(ours):
    arrays, batch = DQC.arrays(), ours.dqc_batch(DQC)
    returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, DQC.discount)
    np.testing.assert_allclose(returns, arrays["high_value_rewards"], rtol=1e-5)
    bootstrap = DQC.discount ** arrays["high_value_backup_horizon"] * arrays["high_value_masks"]
    np.testing.assert_allclose(factor, bootstrap, rtol=1e-5)
    assert 0 < (arrays["high_value_rewards"] > 0).mean() < 1


def public_layers(prefix, dims, heads=None):
    """Flax's parameters of an MLP with LayerNorm in all but the last layer."""
    lead, found = () if heads is None else (heads,), {}
    for i, (a, b) in enumerate(itertools.pairwise(dims)):
        found |= {
            f"{prefix}/Dense_{i}/kernel": np.zeros((*lead, a, b)),
            f"{prefix}/Dense_{i}/bias": np.zeros((*lead, b)),
        }
        if i < len(dims) - 2:
            found |= {f"{prefix}/LayerNorm_{i}/{name}": np.zeros((*lead, b)) for name in ("scale", "bias")}
    return found


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_public_parameters_become_ours(ours):
    joint, hidden = DQC.state_dim + DQC.goal_dim, DQC.hidden_dims
    theirs = {
        **public_layers("params/actor_bc/mlp", (DQC.state_dim + 4 + 1, *hidden, 4)),
        **public_layers("params/value/value_net", (joint, *hidden, 1)),
        **public_layers("params/action_critic/value_net", (joint + 4, *hidden, 1), heads=2),
        **public_layers("params/chunk_critic/value_net", (joint + 8, *hidden, 1), heads=2),
    }
    state = jax.eval_shape(ours.dqc_learner(DQC).init, jax.random.key(0))
    assert shapes(mapping.dqc(theirs, "params")) == shapes(state.params)
    with pytest.raises(KeyError, match="chunk_critic"):
        mapping.dqc({name: x for name, x in theirs.items() if "chunk" not in name}, "params")


def test_serls_parameters_become_ours(ours):
    """Its trunks and output layers are apart; the actor's two outputs are one of ours."""

    def trunk(prefix, in_dim, heads=None):
        layers = public_layers(f"{prefix}/network", (in_dim, *SERL.hidden_dims, 1), heads)
        return {name: leaf for name, leaf in layers.items() if "Dense_2" not in name}

    critic = trunk("c", 8, 4) | {"c/Dense_0/kernel": np.zeros((4, 24, 1)), "c/Dense_0/bias": np.zeros((4, 1))}
    outputs = {f"a/Dense_{i}/{name}": np.zeros(s) for i in (0, 1) for name, s in (("kernel", (24, 3)), ("bias", (3,)))}
    state = jax.eval_shape(ours.rlpd_learner().init, jax.random.key(0))
    assert shapes(mapping.serl_critic(critic, "c")) == shapes(state.params["critic"])
    assert shapes(mapping.serl_actor(trunk("a", 5) | outputs, "a")) == shapes(state.params["actor"])


def test_a_difference_above_rounding_stops_the_benchmark(ours, monkeypatch, capsys):
    near = {"a": jnp.array([1.0, 2.0])}
    assert ours.differences(near, {"a": jnp.array([1.0, 2.5])}) == {"['a']": pytest.approx(0.2)}
    with pytest.raises(RuntimeError, match="other arrays"):
        ours.differences(near, {"b": near["a"]})
    monkeypatch.setattr(ours, "dqc_check", lambda theirs, size: {"fine": 1e-6, "grads": 1e-2})
    with pytest.raises(RuntimeError, match="grads differs"):
        ours.check("dqc_2x256", {})
    monkeypatch.setattr(ours, "dqc_check", lambda theirs, size: {"fine": 1e-6})
    ours.check("dqc_2x256", {})
    assert json.loads(capsys.readouterr().out.removeprefix("RESULT "))["difference"] == 1e-6


@pytest.mark.parametrize("case", ["dqc_2x256_scan10", "serl_utd20"])
def test_our_side_runs(ours, case, capsys):
    made = (ours.dqc_case if case.startswith("dqc") else ours.rlpd_case)(case)
    timing.run(made, types.SimpleNamespace(repeats=1))
    result = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert result["finite"] and result["seconds"] > 0 and result["num_params"] > 1000
