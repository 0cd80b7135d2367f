"""DQC: one full update of the authors' code, the claims of the paper's method in closed form, a chain it must solve."""

import dataclasses
import functools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vla_jax.core import errors
from vla_jax.core.types import Observation, Transitions
from vla_jax.data import trajectories, trajectory_sets
from vla_jax.learners import dqc
from vla_jax.learners.dqc import DQC, DQCConfig
from vla_jax.losses.flow import flow_matching_loss, interpolate
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy
from vla_jax.samplers.best_of import best_of
from vla_jax.samplers.flow import EulerOptions, euler

S, A, G, H, B = 5, 2, 3, 3, 8
WIDTHS = (10, 8)
CRITIC = CriticConfig(WIDTHS, norm="after", activation="gelu", output_scale=1.0)
KEY = jax.random.key(0)
FIXTURE = Path(__file__).parents[1] / "fixtures" / "dqc_update.npz"


def make(config: DQCConfig, policy: type[FlowPolicy] = FlowPolicy, goal_dim: int = G) -> DQC:
    decoder = FlowConfig(config.action_horizon, A, clip_actions=True)
    backbone = StateMLPConfig(S, config.action_horizon, A, hidden_dims=WIDTHS)
    config = dataclasses.replace(config, critic=CRITIC)
    return DQC(lambda rngs: policy(decoder, StateMLP(backbone, rngs), rngs), A, S, goal_dim, optax.adam(3e-4), config)


@functools.cache
def started(config: DQCConfig, goal_dim: int = G) -> tuple[DQC, dqc.DQCState]:
    """A learner and a state of random numbers: compiling the real initialization takes longer than all of a test."""
    learner = make(config, goal_dim=goal_dim)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(learner.init, KEY)
    params = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), x.dtype), shapes.params)
    return learner, dqc.DQCState(
        jnp.zeros((), jnp.int32), params, params["action_critic"], learner.optimizer.init(params)
    )


@functools.cache
def loss_of(learner: DQC):
    """(params, target_critic, batch) -> loss, metrics; compiled, since one by one its operations take seconds."""
    return jax.jit(lambda params, target, batch: learner.loss(params, target, KEY, batch))


@functools.cache
def grads_of(learner: DQC):
    return jax.jit(lambda params, target, batch: jax.grad(learner.loss, has_aux=True)(params, target, KEY, batch)[0])


DECOUPLED = DQCConfig(H, 2, discount=0.9)


def observe(state) -> Observation:
    state = jnp.asarray(state)
    return Observation({}, {}, state, jnp.zeros((len(state), 1), jnp.int32), jnp.zeros((len(state), 1), bool))


def batch_of(num_steps, success, horizon: int, *, masked: bool = True, batch: int = B, **arrays) -> Transitions:
    """Chunks that back up over `num_steps`; those cut short say so by their mask, or (all valid) by their discounts."""
    num_steps, success = np.asarray(num_steps), np.asarray(success, bool)
    steps = np.arange(horizon)[None]
    mask = success[:, None] | (steps < num_steps[:, None]) if masked else np.ones((batch, horizon), bool)
    discounts = np.where(success[:, None] & (steps >= num_steps[:, None]), 0.0, 1.0)
    if not masked:
        discounts = np.where(~success[:, None] & (steps >= num_steps[:, None]), 1 / 0.99, discounts)
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return Transitions(
        observation=observe(arrays.get("observation", normal(batch, S))),
        actions=arrays.get("actions", jnp.tanh(normal(batch, horizon, A))),
        rewards=jnp.asarray(success[:, None] & (steps == num_steps[:, None]), jnp.float32),
        discounts=jnp.asarray(discounts, jnp.float32),
        action_mask=jnp.asarray(mask),
        next_observation=observe(arrays.get("next_observation", normal(batch, S))),
        extras={},
        goal=arrays.get("goal", normal(batch, G)),
    )


# --- the authors' own update ----------------------------------------------------------------------------------------


@functools.cache
def fixture() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return dict(file)


class FixedDraws(FlowPolicy):
    """A flow policy with the noise and times that the fixture was made with."""

    def loss(self, key, batch):
        noise = fixture()[f"noise@{self.action_horizon}"].reshape(batch.actions.shape)
        time = fixture()["time"][:, 0]
        velocity = self.velocity(self.prefix(batch.observation), interpolate(noise, batch.actions, time), time)
        return flow_matching_loss(velocity, noise, batch.actions, batch.action_mask), {}

    def sample_from(self, key, prefix, num_samples=1):
        noise = fixture()["act/noise"].reshape(num_samples, -1, self.action_horizon, A)

        def model_fn(x, time):
            return jax.vmap(lambda x: self.velocity(prefix, x, jnp.full(len(prefix), time)))(x)

        return jnp.clip(euler(key, model_fn, noise, EulerOptions(10))[0], -1, 1)


def ours(prefix: str, modules: dict[str, str]) -> dict:
    """Their numbers of some modules as our parameters."""
    tree = {}
    for name, theirs in modules.items():
        leaves = {
            path.removeprefix(f"{prefix}/{theirs}/").split("/", 1)[1]: value
            for path, value in fixture().items()
            if path.startswith(f"{prefix}/{theirs}/")
        }
        assert leaves, f"{prefix}/{theirs}"
        dense = [{k: leaves[f"Dense_{i}/{k}"] for k in ("kernel", "bias")} for i in range(3)]
        norms = [{k: leaves[f"LayerNorm_{i}/{k}"] for k in ("scale", "bias")} for i in range(2)]
        mlp = {"hidden": {"0": dense[0], "1": dense[1]}, "norms": {"0": norms[0], "1": norms[1]}, "output": dense[2]}
        tree[name] = {"backbone": {"mlp": mlp}} if name == "policy" else {"mlp": mlp}
    return jax.tree.map(jnp.asarray, tree)


SHARED = dict(num_candidates=4, discount=0.99, aggregation="mean")
NS = dict(backup_level=0.9, **SHARED)
CASES = {
    "mean": DQCConfig(H, 2, distillation_level=0.8, backup_level=0.9, **SHARED),
    "min": DQCConfig(H, 2, distillation_level=0.8, backup_level=0.9, **SHARED | {"aggregation": "min"}),
    "quantile_distill": DQCConfig(
        H, 2, distillation="quantile", distillation_level=0.8, backup="expectile", backup_level=0.7, **SHARED
    ),
    "ns": dqc.n_step(H, **NS),
    "qc": dqc.q_chunking(H, **NS),
    "qc_ns": dqc.q_chunking_n_step(H, 2, **NS | {"aggregation": "min"}),
}


def authors_batch(masked: bool) -> Transitions:
    found = {name.removeprefix("batch/"): value for name, value in fixture().items() if name.startswith("batch/")}
    return batch_of(
        found["high_value_backup_horizon"],
        found["high_value_masks"] == 0,
        H,
        masked=masked,
        observation=found["observations"],
        actions=found["high_value_action_chunks"].reshape(B, H, A),
        next_observation=found["high_value_next_observations"],
        goal=found["high_value_goals"],
    )


def authors_params(config: DQCConfig) -> tuple[dict, dict]:
    at = f"@{config.action_horizon}"
    modules = {"policy": "actor_bc" + at, "value": "value", "action_critic": "action_critic" + at}
    if config.chunk_critic:
        modules["chunk_critic"] = "chunk_critic"
    return ours("params", modules), ours("params", {"target_critic": "target_action_critic" + at})["target_critic"]


def close(found, expected, rtol=2e-4, atol=2e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_released_code(case):
    config = CASES[case]
    learner = make(config, FixedDraws)
    params, target = authors_params(config)
    # the last chunk is cut short after two steps, which the released code backs up over and calls valid all the same
    batch = authors_batch(masked=config.action_horizon < H)
    grads, metrics = jax.jit(jax.grad(learner.loss, has_aux=True))(params, target, KEY, batch)
    names = {"action_critic/loss": "action_critic/critic_loss", "value/loss": "action_critic/value_loss"}
    names |= {"policy/loss": "actor/bc_flow_loss", "loss": "total", "value/values": "action_critic/v_mean"}
    names |= {"action_critic/q_values": "action_critic/q_mean"}
    if config.chunk_critic:
        names["chunk_critic/loss"] = "chunk_critic/critic_loss"
    for name, theirs in names.items():
        np.testing.assert_allclose(metrics[name], fixture()[f"{case}/loss/{theirs}"], rtol=1e-5, err_msg=name)
    modules = {"value": "value", "action_critic": "action_critic"}
    if case == "mean":
        modules |= {"policy": "actor_bc", "chunk_critic": "chunk_critic"}
    close({name: grads[name] for name in modules}, ours(f"{case}/grads", modules))


def test_parameters_after_one_update_are_those_of_the_released_code():
    learner = make(CASES["mean"], FixedDraws)
    params, target = authors_params(CASES["mean"])
    state = dqc.DQCState(jnp.zeros((), jnp.int32), params, target, learner.optimizer.init(params))
    state, _ = jax.jit(learner.update)(state, KEY, authors_batch(masked=True))
    modules = {"policy": "actor_bc", "value": "value", "action_critic": "action_critic", "chunk_critic": "chunk_critic"}
    # Adam's first step is the gradient's sign: where a gradient is rounding, so is its sign
    close(state.params, ours("mean/after", modules), rtol=1e-4, atol=2e-6)
    after = ours("mean/after", {"target_critic": "target_action_critic"})["target_critic"]
    close(state.target_critic, after, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["mean", "min"])
def test_the_chosen_actions_are_those_of_the_released_code(case):
    learner = make(CASES[case], FixedDraws)
    params, _ = authors_params(CASES[case])
    states, goals = fixture()["batch/observations"][:3], jnp.asarray(fixture()["batch/high_value_goals"][:3])
    candidates, _ = jax.jit(learner.scored)(params, KEY, observe(states), goals)
    theirs = jnp.swapaxes(fixture()["act/candidates"], 0, 1).reshape(candidates.shape)
    np.testing.assert_allclose(candidates, theirs, rtol=1e-4, atol=1e-5)
    actions, memory = jax.jit(learner.act)(params, KEY, observe(states), goals)
    np.testing.assert_allclose(actions.reshape(3, -1), fixture()[f"{case}/act/chosen"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(memory, goals)


# --- targets and losses in closed form --------------------------------------------------------------------------------


def test_a_goal_inside_the_chunk_is_worth_its_distance_and_one_outside_what_v_says():
    """Distances 0, 1, 2 of a chunk of 3, then unreachable, then cut off after 2 steps."""
    learner, state = started(DECOUPLED)
    batch = batch_of([0, 1, 2, 3, 2], [1, 1, 1, 0, 0], H, batch=5)

    def both(params):
        inputs = jnp.concatenate([batch.next_observation.state, batch.goal], axis=-1)
        return jax.nn.sigmoid(learner.value.bind(params["value"])(inputs)), learner.targets(params, batch)

    values, targets = jax.jit(both)(state.params)
    np.testing.assert_allclose(targets, [1, 0.9, 0.81, 0.9**3 * values[3], 0.9**2 * values[4]], rtol=1e-5)


def test_one_step_is_goal_conditioned_iql_with_cross_entropies():
    """Written down once more from IQL's equations: Q on the one-step target, V on an upper quantile of Q'."""
    learner, state = started(dqc.one_step(backup_level=0.7, aggregation="min", discount=0.9))
    slow = jax.tree.map(lambda x: 0.9 * x, state.target_critic)
    batch = batch_of([0, 1, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 1, 0, 0, 0], 1)
    metrics = loss_of(learner)(state.params, slow, batch)[1]

    @jax.jit
    def q_values(params):
        inputs = jnp.concatenate([batch.observation.state, batch.goal], axis=-1)
        heads = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(2)]
        return jnp.stack([learner.action_critic.bind(head)(inputs, batch.actions) for head in heads])

    @jax.jit
    def v(observation):
        return learner.value.bind(state.params["value"])(jnp.concatenate([observation.state, batch.goal], axis=-1))

    arrived = batch.rewards[:, 0]
    target = arrived + (1 - arrived) * 0.9 * jax.nn.sigmoid(v(batch.next_observation))
    q = jax.nn.sigmoid(q_values(state.params["action_critic"]))
    cross_entropy = -(target[None] * jnp.log(q) + (1 - target[None]) * jnp.log(1 - q))
    np.testing.assert_allclose(metrics["action_critic/loss"], 0.5 * cross_entropy.mean(), rtol=1e-4)
    best, now = jax.nn.sigmoid(q_values(slow)).min(0), v(batch.observation)
    weight = jnp.where(best >= jax.nn.sigmoid(now), 0.7, 0.3)
    pinball = weight * jnp.abs(now - jnp.log(best / (1 - best)))
    np.testing.assert_allclose(metrics["value/loss"], pinball.mean(), rtol=1e-4)


def distilled(config: DQCConfig, chunk_values: list[float], steps: int = 1500) -> float:
    """Q_a of one beginning where the chunk critic, frozen, gives these values to as many chunks that go on with it."""
    learner, state = started(config)
    n = len(chunk_values)
    actions = jax.random.uniform(KEY, (n, H, A)).at[:, :1].set(0.3)
    same = dict(observation=jnp.ones((n, S)), next_observation=jnp.ones((n, S)), goal=jnp.ones((n, G)))
    batch = batch_of([H] * n, [0] * n, H, batch=n, actions=actions, **same)
    wanted = jnp.log(jnp.asarray(chunk_values) / (1 - jnp.asarray(chunk_values)))
    chunk = fit_heads(learner, state.params["chunk_critic"], batch, wanted)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, steps))

    def step(carry, _):
        params, opt_state = carry
        whole = {**state.params, "chunk_critic": chunk, "action_critic": params}
        grads = jax.grad(lambda p: learner.loss(p, state.target_critic, KEY, batch)[0])(whole)["action_critic"]
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    start = (state.params["action_critic"], optimizer.init(state.params["action_critic"]))
    (params, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, None, steps))(start)
    inputs = jnp.ones((1, S + G))
    return jax.nn.sigmoid(learner._logits(learner.action_critic, params, inputs, actions[:1, :1])).mean().item()


def fit_heads(learner, params, batch, wanted, steps: int = 500):
    inputs = jnp.concatenate([batch.observation.state, batch.goal], axis=-1)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, steps))

    def step(carry, _):
        params, opt_state = carry
        grads = jax.grad(
            lambda p: jnp.square(learner._logits(learner.chunk_critic, p, inputs, batch.actions) - wanted[None]).mean()
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.jit(lambda s: jax.lax.scan(step, s, None, steps))((params, optimizer.init(params)))[0][0]


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_distillation_finds_the_expectile_of_how_a_beginning_goes_on(level):
    """Of values 0 and 1, equally likely, the cross-entropy's expectile is the level itself."""
    config = DQCConfig(H, 1, distillation_level=level)
    assert distilled(config, [1e-3, 1 - 1e-3]) == pytest.approx(level, abs=0.02)


def test_at_level_one_half_and_equal_lengths_distillation_is_the_identity():
    """With q' = sigmoid(Q_h) as both, Q_a's loss is stationary exactly where its logits are Q_h's."""
    learner, state = started(DQCConfig(H, H, distillation_level=0.5))
    batch = batch_of([H] * B, [0] * B, H)
    params = {**state.params, "action_critic": state.params["chunk_critic"]}
    grads, others = (grads_of(learner)(p, state.target_critic, batch)["action_critic"] for p in (params, state.params))
    assert optax.global_norm(grads) < 1e-6 and optax.global_norm(others) > 1e-3


def test_v_is_the_quantile_of_the_action_critic_over_the_actions_of_the_data():
    """Six actions in one state: the loss of V is least at the 0.7-quantile, the fifth smallest of their values."""
    learner, state = started(dqc.one_step(backup_level=0.7, aggregation="mean", num_critics=1), goal_dim=0)
    batch = batch_of([1] * 6, [0] * 6, 1, batch=6, observation=jnp.ones((6, S)))
    target = jax.tree.map(lambda x: 3 * x, state.target_critic)
    q_values = learner._logits(learner.action_critic, target, batch.observation.state, batch.actions)[0]
    value = state.params["value"]

    def loss_at(level):
        output = {"kernel": jnp.zeros_like(value["mlp"]["output"]["kernel"]), "bias": level[None]}
        params = {**state.params, "value": {"mlp": {**value["mlp"], "output": output}}}
        return learner.loss(params, target, KEY, batch)[1]["value/loss"]

    levels = jnp.linspace(q_values.min() - 0.1, q_values.max() + 0.1, 2001)
    least = levels[jax.jit(jax.vmap(loss_at))(levels).argmin()]
    assert least == pytest.approx(jnp.sort(q_values)[4].item(), abs=(levels[1] - levels[0]).item())


def test_every_loss_trains_its_own_network_only():
    learner, state = started(DECOUPLED)
    batch = batch_of([3, 3, 0, 1, 3, 2, 3, 3], [0, 0, 1, 1, 0, 1, 0, 0], H)
    slow = jax.tree.map(lambda x: 0.9 * x, state.target_critic)
    trains = ("chunk_critic", "action_critic", "value", "policy")

    @jax.jit
    def sizes(params, slow):
        """Of the gradient of every loss in every network, the slow copy last."""
        losses = lambda params, slow: [learner.loss(params, slow, KEY, batch)[1][f"{name}/loss"] for name in trains]  # noqa: E731
        by_params, by_slow = jax.jacrev(lambda p, s: jnp.stack(losses(p, s)), argnums=(0, 1))(params, slow)
        trees = [by_params[name] for name in trains] + [by_slow]
        norm = jax.vmap(optax.global_norm)
        return jnp.stack([norm(tree) for tree in trees], axis=1)

    np.testing.assert_array_equal(sizes(state.params, slow) > 0, np.eye(4, 5, dtype=bool))


def test_only_the_action_critic_has_a_slow_copy_and_it_follows_by_the_rate():
    learner, state = started(DQCConfig(H, 2, target_update_rate=0.25))
    batch = batch_of([3] * B, [0] * B, H)
    assert jax.tree.structure(state.target_critic) == jax.tree.structure(state.params["action_critic"])
    state = state.replace(target_critic=jax.tree.map(lambda x: x - 1, state.params["action_critic"]))
    after, metrics = jax.jit(learner.update)(state, KEY, batch)
    close(after.target_critic, jax.tree.map(lambda x: x - 0.75, state.params["action_critic"]), atol=1e-6)
    assert after.step == 1 and all(jnp.isfinite(value) for value in metrics.values())


def test_beginnings_that_the_episode_does_not_have_train_neither_the_action_critic_nor_the_policy():
    learner, state = started(DECOUPLED)
    batch = batch_of([3, 3, 3, 1] * 2, [0] * B, H)  # every fourth ends after one of two steps
    changed = batch.replace(actions=batch.actions.at[3::4, 1:].set(9.0))
    before, after = (grads_of(learner)(state.params, state.target_critic, each) for each in (batch, changed))
    for name in ("action_critic", "value", "policy"):
        close(before[name], after[name])


# --- acting -----------------------------------------------------------------------------------------------------------


def test_best_of_takes_each_examples_highest_score():
    candidates = jnp.arange(2 * 3 * 2 * 1, dtype=jnp.float32).reshape(2, 3, 2, 1)
    chosen = best_of(candidates, jnp.asarray([[0.0, 2.0, 1.0], [5.0, 2.0, 5.0]]))
    np.testing.assert_array_equal(chosen, candidates[jnp.arange(2), jnp.asarray([1, 0])])


def test_one_candidate_is_behaviour_cloning_and_more_raise_the_expected_value():
    observation, goal = observe(jax.random.normal(KEY, (64, S))), jnp.ones((64, G))
    means = []
    for count in (1, 4, 32):
        learner, state = started(dataclasses.replace(DECOUPLED, num_candidates=count))

        def judged(params, learner=learner):
            actions, _ = learner.act(params, KEY, observation, goal)
            inputs = jnp.concatenate([observation.state, goal], axis=-1)
            logits = learner._logits(learner.action_critic, params["action_critic"], inputs, actions)
            cloned = learner.net.bind(params["policy"]).sample(KEY, observation)[0]
            return actions, cloned, logits.min(axis=0).mean()

        actions, cloned, value = jax.jit(judged)(learner.actor(state))
        means.append(value.item())
        if count == 1:
            np.testing.assert_allclose(actions, cloned, rtol=1e-5, atol=1e-6)
    assert means[0] < means[1] < means[2]


def test_the_policy_knows_no_goal_and_the_choice_does():
    learner, state = started(DECOUPLED)
    scored = jax.jit(lambda goal: learner.scored(learner.actor(state), KEY, observation, goal))
    observation = observe(jax.random.normal(KEY, (32, S)))
    goals = [jax.random.normal(jax.random.key(i), (32, G)) for i in (1, 2)]
    (first, first_scores), (second, second_scores) = (scored(goal) for goal in goals)
    np.testing.assert_array_equal(first, second)
    assert (first_scores.argmax(1) != second_scores.argmax(1)).any()


def test_naive_runs_the_beginning_of_what_q_chunking_chooses():
    (whole, state), (part, _) = started(dqc.q_chunking(H)), started(dqc.naive(H, 1))
    params = whole.actor(state)
    observation, memory = observe(jnp.ones((2, S))), whole.initial_memory(2)
    chunk, beginning = (jax.jit(x.act)(params, KEY, observation, memory)[0] for x in (whole, part))
    assert chunk.shape == (2, H, A) and beginning.shape == (2, 1, A)
    np.testing.assert_allclose(beginning, chunk[:, :1], rtol=1e-6)


# --- data and configs -------------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6), horizon=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_chunks_and_goals_of_any_trajectories_give_the_targets_of_the_method(lengths, horizon, seed):
    """States are (episode, step), actions the same: a chunk across a boundary would show two episodes."""
    hypothesis.assume(max(lengths) > horizon)
    rows = np.asarray([(e, t) for e, n in enumerate(lengths) for t in range(n)], np.float32)
    flat = trajectory_sets.from_arrays(rows, rows, np.zeros(len(rows)), np.ones(len(rows)), np.asarray(lengths))
    starts = trajectories.chunk_starts(flat, horizon, arrives=True)
    batch = trajectories.goal_batch(flat, starts, jax.random.key(seed), (64,), horizon, trajectories.HindsightConfig())
    np.testing.assert_array_equal(batch.actions[..., 0], np.repeat(batch.observation[:, :1], horizon, axis=1))
    np.testing.assert_array_equal(batch.actions[..., 1], batch.observation[:, 1:] + np.arange(horizon)[None])
    returns, factor = dqc.td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, 0.9)
    distance = np.where(batch.goal[:, 0] == batch.observation[:, 0], batch.goal[:, 1] - batch.observation[:, 1], np.inf)
    inside = (distance >= 0) & (distance < horizon)
    steps = np.where(inside, distance, horizon)
    np.testing.assert_allclose(returns, np.where(inside, 0.9**steps, 0), rtol=1e-5)
    np.testing.assert_allclose(factor, np.where(inside, 0, 0.9**steps), rtol=1e-5)
    np.testing.assert_array_equal(batch.next_observation[:, 1], batch.observation[:, 1] + steps)


def test_goals_that_are_observations_count_by_their_state():
    learner, state = started(DECOUPLED)
    batch = batch_of([3] * B, [0] * B, H)
    for_states = batch.replace(goal=observe(batch.goal))
    plain, seen = (loss_of(learner)(state.params, state.target_critic, each)[0] for each in (batch, for_states))
    np.testing.assert_allclose(plain, seen, rtol=1e-6)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(errors.ConfigError, match="backup_horizon = 3"):
        DQCConfig(3, 4)
    with pytest.raises(errors.ConfigError, match="execution_horizon"):
        DQCConfig(3, 2, execution_horizon=3)
    with pytest.raises(errors.ConfigError, match="backup_level"):
        DQCConfig(backup_level=1.0)
    learner = make(DQCConfig(3, 2))
    with pytest.raises(errors.ConfigError, match="3 steps of 2"):
        dataclasses.replace(learner, config=dataclasses.replace(learner.config, action_horizon=3)).init(KEY)
