"""One full update against the authors' SAC agent: losses, gradients and parameters (tests/fixtures/README.md)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core.types import Transitions
from vla_jax.learners.rlpd import RLPD, RLPDConfig, RLPDState
from vla_jax.nets.critics import CriticConfig

S, A, WIDTHS = 5, 3, (16, 12)
CONFIG = RLPDConfig(num_critics=4, critic=CriticConfig(WIDTHS, activation="tanh"), actor_dims=WIDTHS)
LEARNER = RLPD(A, S, optax.adam(3e-4), CONFIG)
CLOSE = dict(rtol=2e-4, atol=2e-6)


@pytest.fixture(scope="module")
def theirs():
    with np.load(Path(__file__).parent.parent / "fixtures" / "rlpd_update.npz") as file:
        return {name: jnp.asarray(file[name]) for name in file}


def critic(theirs, prefix):
    """Heads lead every leaf."""

    def layer(name):
        return theirs[f"{prefix}/critic/{name}"]

    hidden = {str(i): {key: layer(f"network/Dense_{i}/{key}") for key in ("kernel", "bias")} for i in (0, 1)}
    norms = {str(i): {key: layer(f"network/LayerNorm_{i}/{key}") for key in ("scale", "bias")} for i in (0, 1)}
    output = {key: layer(f"Dense_0/{key}") for key in ("kernel", "bias")}
    return {"head": {"mlp": {"hidden": hidden, "norms": norms, "output": output}}, "encoder": {}}


def actor(theirs, prefix):
    """Their two output layers, mean and log standard deviation, are the halves of our one."""

    def layer(name):
        return theirs[f"{prefix}/actor/{name}"]

    hidden = {str(i): {key: layer(f"network/Dense_{i}/{key}") for key in ("kernel", "bias")} for i in (0, 1)}
    norms = {str(i): {key: layer(f"network/LayerNorm_{i}/{key}") for key in ("scale", "bias")} for i in (0, 1)}
    output = {key: jnp.concatenate([layer(f"Dense_{i}/{key}") for i in (0, 1)], -1) for key in ("kernel", "bias")}
    return {"head": {"mlp": {"hidden": hidden, "norms": norms, "output": output}}, "encoder": {}}


@pytest.fixture(scope="module")
def state(theirs) -> RLPDState:
    params = {"actor": actor(theirs, "params"), "critic": critic(theirs, "params")}
    params["temperature"] = theirs["params/temperature/lagrange"]
    opt_state = {name: LEARNER.optimizer.init(tree) for name, tree in params.items()}
    return RLPDState(jnp.zeros((), jnp.int32), params, critic(theirs, "target_params"), opt_state)


@pytest.fixture(scope="module")
def batch(theirs) -> Transitions:
    column = {name: theirs[f"batch/{name}"][:, None] for name in ("actions", "rewards", "masks")}
    mask = jnp.ones_like(column["rewards"], bool)
    now, after = theirs["batch/observations"], theirs["batch/next_observations"]
    return Transitions(now, column["actions"], column["rewards"], column["masks"], mask, after, {})


def close(ours, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, expected)


def stepped(state, name, grads):
    return jax.jit(lambda state, grads: LEARNER._apply(state, name, grads).params[name])(state, grads)


@jax.jit
def sampled(state, observation, noise):
    return LEARNER.gaussian.bind(state.params["actor"]["head"]).sample_from(observation, noise)


def test_critic(theirs, state, batch):
    flat, log_prob = sampled(state, batch.next_observation, theirs["critic/next_noise"])
    np.testing.assert_allclose(flat, theirs["critic/next_actions"], **CLOSE)
    np.testing.assert_allclose(log_prob, theirs["critic/next_log_prob"], **CLOSE)
    targets = jax.jit(LEARNER.targets)(state, theirs["heads"], batch, flat[:, None], log_prob)
    np.testing.assert_allclose(targets, theirs["target_q"], **CLOSE)
    q_values = jax.jit(LEARNER.q_values)(state.params["critic"]["head"], batch.observation, batch.actions)
    np.testing.assert_allclose(q_values, theirs["q_values"], **CLOSE)

    loss_and_grads = jax.jit(jax.value_and_grad(LEARNER.critic_loss, has_aux=True))
    (loss, mean_q), grads = loss_and_grads(state.params["critic"], {}, batch, targets)
    np.testing.assert_allclose(loss, theirs["critic/loss"], **CLOSE)
    np.testing.assert_allclose(mean_q, theirs["critic/info/predicted_qs"], **CLOSE)
    close(grads, critic(theirs, "critic/grads"))
    after = stepped(state, "critic", grads)
    close(after, critic(theirs, "after"))
    close(optax.incremental_update(after, state.target, CONFIG.target_update_rate), critic(theirs, "after_target"))


def test_actor(theirs, state, batch):
    loss_and_grads = jax.jit(jax.value_and_grad(LEARNER.actor_loss, has_aux=True))
    (loss, log_prob), grads = loss_and_grads(state.params["actor"], state, batch.observation, theirs["actor/noise"])
    np.testing.assert_allclose(loss, theirs["actor/loss"], **CLOSE)
    np.testing.assert_allclose(log_prob, theirs["actor/log_prob"], **CLOSE)
    close(grads, actor(theirs, "actor/grads"))
    close(stepped(state, "actor", grads), actor(theirs, "after"))


def test_temperature(theirs, state, batch):
    log_prob = sampled(state, batch.next_observation, theirs["temperature/next_noise"])[1]
    np.testing.assert_allclose(log_prob, theirs["temperature/next_log_prob"], **CLOSE)
    parameter = state.params["temperature"]
    np.testing.assert_allclose(LEARNER.temperature(parameter), theirs["actor/info/temperature"], **CLOSE)
    loss, grads = jax.value_and_grad(LEARNER.temperature_loss)(parameter, log_prob)
    np.testing.assert_allclose(loss, theirs["temperature/loss"], **CLOSE)
    np.testing.assert_allclose(grads, theirs["temperature/grads/temperature/lagrange"], **CLOSE)
    np.testing.assert_allclose(stepped(state, "temperature", grads), theirs["after/temperature/lagrange"], rtol=1e-6)
