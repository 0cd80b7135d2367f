"""PA-RL against the authors' own code: improved actions, Cal-QL's loss and gradients, one step of the critic.

`tests/fixtures/cal_ql_update.npz` was made with their repository (tests/fixtures/README.md). Their heads share the last
layer, ours do not: it is copied to every head here, and its gradient summed over them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.critic_ensemble import Conservative, HLGauss
from vla_jax.learners.pa_rl import PARL, CalQL, PARLConfig
from vla_jax.losses.categorical import expected, hl_gauss
from vla_jax.nets.critics import CriticConfig
from vla_jax.samplers.action_ascent import AscentOptions, optimize_actions

FIXTURE = dict(np.load(Path(__file__).parent.parent / "fixtures" / "cal_ql_update.npz"))
BATCH = {name.removeprefix("batch/"): jnp.asarray(x) for name, x in FIXTURE.items() if name.startswith("batch/")}
E, S, A, B, K, M, T, N = 3, 5, 2, 6, 6, 3, 4, 2
STEP_SIZE, WEIGHT, DISCOUNT, RATE = 0.3, 0.5, 0.99, 3e-4
HEADS = {"mse": None, "hl_gauss": HLGauss(-100.0, 0.0, 16)}
both_heads = pytest.mark.parametrize("name", HEADS)


def make(name, **ascent) -> PARL:
    config = PARLConfig(
        num_samples=K,
        ascent=AscentOptions(**dict(num_kept=M, num_steps=T, step_size=STEP_SIZE) | ascent),
        critic_kind=CalQL(Conservative(weight=WEIGHT, num_actions=N)),
        head=HEADS[name],
        num_critics=E,
        critic=CriticConfig((12, 8), activation="silu"),
        discount=DISCOUNT,
    )
    return PARL(lambda rngs: None, A, S, optax.adam(RATE), optax.adam(RATE), config)


def arrays(name, kind):
    prefix = f"{name}/{kind}/"
    return {path.removeprefix(prefix): jnp.asarray(x) for path, x in FIXTURE.items() if path.startswith(prefix)}


def translated(theirs):
    """Their parameters as ours: the shared last layer given to every head."""
    copied = {name: jnp.broadcast_to(x[None], (E, *x.shape)) for name, x in theirs.items() if "network" not in name}

    def layers(name, *parts):
        return {str(i): {part: theirs[f"network/{name}_{i}/{part}"] for part in parts} for i in (0, 1)}

    output = {part: copied[f"Dense_0/{part}"] for part in ("kernel", "bias")}
    hidden, norms = layers("Dense", "kernel", "bias"), layers("LayerNorm", "scale", "bias")
    return {"mlp": {"hidden": hidden, "norms": norms, "output": output}}


def back(ours, reduce):
    """The inverse of `translated`; `reduce` makes one last layer of those of the heads."""
    mlp = ours["mlp"]
    named = {f"Dense_0/{part}": reduce(leaf) for part, leaf in mlp["output"].items()}
    for name, layers in (("Dense", mlp["hidden"]), ("LayerNorm", mlp["norms"])):
        named |= {f"network/{name}_{i}/{part}": leaf for i, layer in layers.items() for part, leaf in layer.items()}
    return named


def assert_same(found, expected, **tolerance):
    assert set(found) == set(expected)
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, err_msg=path, **tolerance)


def chunks(actions):
    """One-step chunks of their actions."""
    return actions[..., None, :]


def seen(state):
    return Observation({}, {}, state, jnp.zeros((B, 1), jnp.int32), jnp.ones((B, 1), bool))


def batch(name):
    column = lambda x: x[:, None]  # noqa: E731
    mask = jnp.ones((B, 1), bool)
    extras = {
        "mc_return": jnp.asarray(FIXTURE[f"{name}/mc_returns"]),
        "candidates": chunks(BATCH["candidates"]),
        "next_candidates": chunks(BATCH["next_candidates"]),
    }
    rewards, discounts = column(BATCH["rewards"]), column(BATCH["masks"])
    now, following = seen(BATCH["state"]), seen(BATCH["next_state"])
    return Transitions(now, chunks(BATCH["actions"]), rewards, discounts, mask, following, extras)


@both_heads
def test_every_point_of_the_ascent_is_theirs(name):
    learner, params = make(name), translated(arrays(name, "params"))
    q_fn = lambda actions: learner.ensemble.q_values(params, BATCH["state"], chunks(actions)).mean(0)  # noqa: E731
    np.testing.assert_allclose(q_fn(BATCH["candidates"]), FIXTURE[f"{name}/q_candidates"].mean(0), rtol=1e-4, atol=1e-5)
    options = AscentOptions(num_kept=K, num_steps=T, step_size=STEP_SIZE)
    _, _, trace = optimize_actions(q_fn, BATCH["candidates"], options)
    order = jnp.argsort(-q_fn(BATCH["candidates"]), axis=1)[..., None]
    for point, theirs in zip(trace.actions, FIXTURE[f"{name}/iterates"], strict=False):
        np.testing.assert_allclose(point, jnp.take_along_axis(jnp.asarray(theirs), order, 1), atol=2e-5)


@both_heads
def test_the_improved_actions_and_their_values_are_theirs(name):
    learner, params = make(name), translated(arrays(name, "params"))
    actions, q_values = learner.improve(params, BATCH["state"], chunks(BATCH["candidates"]))
    # theirs come worst first, by the value before the ascent
    np.testing.assert_allclose(actions[:, ::-1, 0], FIXTURE[f"{name}/T_mean/actions"], atol=2e-5)
    logits = FIXTURE[f"{name}/T_mean/logits"]  # the distribution that holds them may have normalized them
    ours = q_values[:, ::-1]
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), logits - logits.mean(1, keepdims=True), rtol=1e-3, atol=1e-4
    )
    for state, candidates, theirs in (("state", "candidates", "current"), ("next_state", "next_candidates", "next")):
        best = learner.improved(params, BATCH[state], chunks(BATCH[candidates]))
        # values of a hundred times the size, through four steps: rounding grows with them
        np.testing.assert_allclose(best[:, 0], FIXTURE[f"{name}/{theirs}_actions"], atol=3e-4)


def loss_of(name):
    learner, target_params = make(name), translated(arrays(name, "target_params"))
    following = jnp.asarray(FIXTURE[f"{name}/next_actions"])
    heads = jnp.asarray(FIXTURE[f"{name}/td_heads"])
    next_values = learner.ensemble.subset_minimum(target_params, heads, BATCH["next_state"], chunks(following))
    targets = learner._targets(batch(name), next_values)
    improved = jnp.stack([following, jnp.asarray(FIXTURE[f"{name}/current_actions"])], axis=1)

    def loss(params, weight=WEIGHT):
        return learner.ensemble.conservative_loss(
            params,
            BATCH["state"],
            chunks(BATCH["actions"]),
            targets,
            chunks(jnp.asarray(FIXTURE[f"{name}/random_actions"])),
            chunks(improved),
            batch(name).extras["mc_return"],
            jnp.asarray(FIXTURE[f"{name}/cql_heads"]),
            Conservative(weight=weight, num_actions=N),
            copies=N,
        )

    return loss, targets


@both_heads
def test_targets_losses_and_gradients_are_theirs(name):
    loss, targets = loss_of(name)
    np.testing.assert_allclose(targets, FIXTURE[f"{name}/td_target"], rtol=1e-4, atol=1e-5)
    params = translated(arrays(name, "params"))
    value, metrics = loss(params)
    expected = {"total": value, "td": metrics["critic/td_loss"], "cql": metrics["critic/gap"]}
    for part, found in expected.items():
        np.testing.assert_allclose(found, FIXTURE[f"{name}/loss/{part}"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/bound_rate"], FIXTURE[f"{name}/bound_rate"], atol=1e-6)
    for part, weight in (("total", WEIGHT), ("td", 0.0)):
        grads = jax.grad(lambda p, weight=weight: loss(p, weight)[0])(params)
        assert_same(back(grads, lambda x: x.sum(0)), arrays(name, f"grads_{part}"), rtol=1e-3, atol=2e-5)


@both_heads
def test_one_step_of_the_critic_lands_where_theirs_does(name):
    loss, _ = loss_of(name)
    params = translated(arrays(name, "params"))
    optimizer, grads = optax.adam(RATE), jax.grad(lambda p: loss(p)[0])(params)
    # one shared last layer takes one step along the sum
    shared = jax.tree.map(lambda g: jnp.broadcast_to(g.sum(0)[None], g.shape), grads["mlp"]["output"])
    grads = {"mlp": {**grads["mlp"], "output": shared}}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = back(optax.apply_updates(params, updates), lambda x: x[0])
    # Adam's first step is its rate times the gradient's sign: where that is rounding, either sign is right
    assert_same(after, arrays(name, "after"), rtol=0, atol=2.5e-5)


def test_histograms_are_theirs():
    support, theirs = HEADS["hl_gauss"].support, FIXTURE["hl_gauss/encode/probs"]
    encoded = hl_gauss(jnp.asarray(FIXTURE["hl_gauss/encode/targets"]), support, 0.75, widened=True)
    np.testing.assert_allclose(encoded, theirs, atol=1e-5)
    decoded = expected(jnp.log(encoded + 1e-30), support.centers)
    np.testing.assert_allclose(decoded, FIXTURE["hl_gauss/encode/decoded"], rtol=1e-4)
