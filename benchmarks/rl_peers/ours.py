"""Our side: `learners.dqc` and `learners.rlpd` at the sizes of sizes.py.

With --check FILE nothing is timed: losses and gradients are compared with those in the file, which the public agents
computed on the same parameters, batch and draws.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import mapping
import numpy as np
import optax
import sizes
import timing

from vla_jax.core import placement, runtime
from vla_jax.core.types import Observation, Transitions
from vla_jax.learners.dqc import DQC, DQCConfig
from vla_jax.learners.rlpd import RLPD, RLPDConfig
from vla_jax.losses.flow import flow_matching_loss, interpolate
from vla_jax.nets.critics import CriticConfig
from vla_jax.nets.state_mlp import StateMLP, StateMLPConfig
from vla_jax.policies.flow import FlowConfig, FlowPolicy

_TOLERANCE = 2e-4  # of the largest entry of each array


class FixedDraws(FlowPolicy):
    """The flow loss with noise and times that were drawn elsewhere."""

    draws: dict[str, np.ndarray]

    def loss(self, key, batch):
        noise, time = self.draws["noise"].reshape(batch.actions.shape), self.draws["time"][:, 0]
        velocity = self.velocity(self.prefix(batch.observation), interpolate(noise, batch.actions, time), time)
        return flow_matching_loss(velocity, noise, batch.actions, batch.action_mask), {}


def dqc_learner(size: sizes.DQCSize, policy: type[FlowPolicy] = FlowPolicy) -> DQC:
    decoder = FlowConfig(size.action_horizon, size.action_dim, clip_actions=True)
    backbone = StateMLPConfig(size.state_dim, size.action_horizon, size.action_dim, hidden_dims=size.hidden_dims)
    config = DQCConfig(
        size.backup_horizon,
        size.action_horizon,
        distillation_level=size.kappa_d,
        backup_level=size.kappa_b,
        discount=size.discount,
        critic=CriticConfig(size.hidden_dims, norm="after", activation="gelu", output_scale=1.0),
    )
    return DQC(
        lambda rngs: policy(decoder, StateMLP(backbone, rngs), rngs),
        size.action_dim,
        size.state_dim,
        size.goal_dim,
        optax.adam(sizes.ADAM_LR),
        config,
    )


def dqc_batch(size: sizes.DQCSize, leading: tuple[int, ...] = ()) -> Transitions:
    """The public agent's batch: with success after k steps rewards are 1 there and discounts 0 from there on."""
    arrays = size.arrays(leading)
    steps, arrived = arrays["high_value_backup_horizon"][..., None], arrays["high_value_masks"][..., None] == 0
    each = np.arange(size.backup_horizon)

    def observation(state):
        no_prompt = np.zeros((*state.shape[:-1], 1), np.int32)
        return Observation({}, {}, state, no_prompt, no_prompt > 0)

    batch = Transitions(
        observation(arrays["observations"]),
        arrays["high_value_action_chunks"].reshape(*steps.shape[:-1], size.backup_horizon, size.action_dim),
        (arrived & (each == steps)).astype(np.float32),
        np.where(arrived & (each >= steps), 0.0, 1.0).astype(np.float32),
        np.ones((*steps.shape[:-1], size.backup_horizon), bool),
        observation(arrays["high_value_next_observations"]),
        {},
        arrays["high_value_goals"],
    )
    return jax.tree.map(jnp.asarray, batch)


def dqc_case(name: str) -> timing.Case:
    size, scan = sizes.dqc_case(name)
    learner = dqc_learner(size)
    state = jax.jit(learner.init)(jax.random.key(0))

    def one(state, batch):
        return learner.update(state, jax.random.fold_in(jax.random.key(1), state.step), batch)[0]

    def many(state, batches):
        return jax.lax.scan(lambda state, batch: (one(state, batch), None), state, batches)[0]

    batch = dqc_batch(size, () if scan is None else (scan,))
    return timing.Case(one if scan is None else many, state, (batch,), state.params)


def rlpd_learner() -> RLPD:
    size = sizes.SERL
    config = RLPDConfig(
        num_critics=size.num_critics,
        num_min_critics=size.num_min_critics,
        critic=CriticConfig(size.hidden_dims, norm="before", activation="tanh"),
        actor_dims=size.hidden_dims,
        discount=size.discount,
        actor_batch="all",
    )
    return RLPD(size.action_dim, size.state_dim, optax.adam(sizes.ADAM_LR), config)


def rlpd_batch(leading: tuple[int, ...]) -> Transitions:
    rows = {name: jnp.asarray(array) for name, array in sizes.SERL.arrays().items()}
    rows = {name: array.reshape(*leading, -1, *array.shape[1:]) for name, array in rows.items()}
    rewards = rows["rewards"][..., None]
    return Transitions(
        rows["observations"],
        rows["actions"][..., None, :],
        rewards,
        rows["masks"][..., None],
        jnp.ones_like(rewards, bool),
        rows["next_observations"],
        {},
    )


def rlpd_case(name: str) -> timing.Case:
    learner = rlpd_learner()
    state = jax.jit(learner.init)(jax.random.key(0))

    def step(state, batch):
        return learner.update(state, jax.random.fold_in(jax.random.key(1), state.step), batch)[0]

    return timing.Case(step, state, (rlpd_batch((1, sizes.SERL.critic_updates)),), state.params)


# --- the comparison ----------------------------------------------------------------------------------------------


def differences(found, expected) -> dict[str, float]:
    """Of each array, the largest difference in parts of its largest entry."""
    found, expected = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (found, expected))
    if [path for path, _ in found] != [path for path, _ in expected]:
        raise RuntimeError(f"other arrays: {found} and {expected}")
    pairs = zip(found, expected, strict=True)
    return {
        jax.tree_util.keystr(path): float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-12))
        for (path, a), (_, b) in pairs
    }


def dqc_check(theirs: dict[str, np.ndarray], size: sizes.DQCSize) -> dict[str, float]:
    draws = {name: jnp.asarray(theirs[name]) for name in ("noise", "time")}
    learner = dqc_learner(size, type("Drawn", (FixedDraws,), {"draws": draws}))
    params, expected = (jax.tree.map(jnp.asarray, mapping.dqc(theirs, what)) for what in ("params", "grads"))
    # the slow copy starts as the critic's
    gradient = jax.jit(jax.grad(learner.loss, has_aux=True))
    grads, metrics = gradient(params, params["action_critic"], jax.random.key(0), dqc_batch(size))
    losses = {
        "chunk_critic/loss": "chunk_critic/critic_loss",
        "action_critic/loss": "action_critic/critic_loss",
        "value/loss": "action_critic/value_loss",
        "policy/loss": "actor/bc_flow_loss",
    }
    found = ({name: metrics[name] for name in losses}, grads)
    return differences(found, ({name: theirs[f"loss/{other}"] for name, other in losses.items()}, expected))


def serl_check(theirs: dict[str, np.ndarray]) -> dict[str, float]:
    size, learner = sizes.SERL, rlpd_learner()
    theirs = {name: jnp.asarray(array) for name, array in theirs.items()}
    critic, actor = (
        mapping.serl_critic(theirs, "params/critic"),
        mapping.serl_actor(theirs, "params/actor"),
    )
    params = {"critic": critic, "actor": actor, "temperature": theirs["params/temperature/lagrange"]}
    state = learner.init(jax.random.key(0)).replace(params=params, target=critic)
    first = jax.tree.map(lambda leaf: leaf[0], rlpd_batch((size.critic_updates,)))
    everything = rlpd_batch(())

    @jax.jit
    def losses(state):
        gaussian = learner.gaussian.bind(state.params["actor"]["head"])
        flat, log_prob = gaussian.sample_from(first.next_observation, theirs["critic/next_noise"])
        targets = learner.targets(state, theirs["critic/heads"], first, flat[:, None], log_prob)
        of_critic = jax.value_and_grad(learner.critic_loss, has_aux=True)
        (critic_loss, _), critic_grads = of_critic(state.params["critic"], {}, first, targets)
        of_actor = jax.value_and_grad(learner.actor_loss, has_aux=True)
        (actor_loss, _), actor_grads = of_actor(
            state.params["actor"], state, everything.observation, theirs["actor/noise"]
        )
        return critic_loss, critic_grads, actor_loss, actor_grads

    expected = (
        theirs["critic/loss"],
        mapping.serl_critic(theirs, "critic/grads/critic"),
        theirs["actor/loss"],
        mapping.serl_actor(theirs, "actor/grads/actor"),
    )
    return differences(losses(state), expected)


def check(case: str, theirs: dict[str, np.ndarray]) -> None:
    """Raise RuntimeError where a loss or a gradient is not theirs; else print the largest difference."""
    is_dqc = case.startswith("dqc")
    found = dqc_check(theirs, sizes.dqc_case(case)[0]) if is_dqc else serl_check(theirs)
    worst = max(found, key=found.get)
    if not found[worst] < _TOLERANCE:
        raise RuntimeError(
            f"{case}: {worst} differs from the public agent's by {found[worst]:.1e} of its largest entry"
        )
    timing.print_result(difference=found[worst], arrays=len(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path)
    options = timing.options(parser, sizes.CASES)
    case = (dqc_case if options.case.startswith("dqc") else rlpd_case)(options.case)
    beside = placement.pays_side_by_side(case.state)
    with placement.side_by_side(beside):  # traced and compiled as fit does it
        if options.check:
            with np.load(options.check) as file:
                check(options.case, dict(file))
        else:
            timing.run(case, options, runtime.kernel_options(jax.default_backend(), side_by_side=beside))


if __name__ == "__main__":
    main()
