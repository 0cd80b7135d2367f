"""Peers: DQC's and SERL's own agents at the sizes of sizes.py; run in an environment of their own.

What is timed is `DQCAgent._update`, `batch_update`'s scan over it, and `SACAgent.update_high_utd`, compiled with the
state's buffers donated, as ours is. With --check FILE nothing is timed: parameters, batch, draws, losses and gradients
are written for our side to compare.
"""

import argparse
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import public
import sizes
import timing


def dqc_agent(clone: Path, size: sizes.DQCSize):
    module = public.dqc(clone)
    config = module.get_config().to_dict() | dict(
        actor_hidden_dims=size.hidden_dims,
        value_hidden_dims=size.hidden_dims,
        lr=sizes.ADAM_LR,
        discount=size.discount,
        backup_horizon=size.backup_horizon,
        policy_chunk_size=size.action_horizon,
        kappa_b=size.kappa_b,
        kappa_d=size.kappa_d,
        q_agg="min",
    )
    return module.DQCAgent.create(0, jax.tree.map(jnp.asarray, size.arrays()), config)


def dqc_case(name: str, clones: Path) -> timing.Case:
    size, scan = sizes.dqc_case(name)
    agent = dqc_agent(clones / "dqc", size)
    arrays = size.arrays(() if scan is None else (scan,))
    # create gives the target critic the very arrays of the critic; donated buffers may not alias
    agent = jax.tree.map(jnp.array, agent)

    def one(agent, batch):
        return type(agent)._update(agent, batch)[0]

    def many(agent, batch):
        return type(agent).batch_update(agent, batch)[0]

    return timing.Case(one if scan is None else many, agent, (jax.tree.map(jnp.asarray, arrays),), agent.network.params)


def serl_agent(clone: Path):
    size = sizes.SERL
    network = dict(activations=nn.tanh, use_layer_norm=True, hidden_dims=list(size.hidden_dims))
    batch = size.arrays()
    return public.serl(clone).SACAgent.create_states(
        jax.random.PRNGKey(0),
        jnp.asarray(batch["observations"]),
        jnp.asarray(batch["actions"]),
        policy_kwargs=dict(tanh_squash_distribution=True, std_parameterization="exp", std_min=1e-5, std_max=5),
        critic_network_kwargs=dict(network),
        policy_network_kwargs=dict(network),
        temperature_init=1e-2,
        discount=size.discount,
        backup_entropy=False,
        critic_ensemble_size=size.num_critics,
        critic_subsample_size=size.num_min_critics,
        **{
            f"{part}_optimizer_kwargs": dict(learning_rate=sizes.ADAM_LR) for part in ("actor", "critic", "temperature")
        },
    )


def serl_case(name: str, clones: Path) -> timing.Case:
    agent = jax.tree.map(jnp.array, serl_agent(clones / "serl"))

    def step(agent, batch):
        return agent.update_high_utd(batch, utd_ratio=sizes.SERL.critic_updates)[0]

    return timing.Case(step, agent, (jax.tree.map(jnp.asarray, sizes.SERL.arrays()),), agent.state.params)


# --- for the comparison ----------------------------------------------------------------------------------------------


def flat(prefix: str, tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join([prefix, *(key.key.removeprefix("modules_") for key in path)]): np.asarray(x) for path, x in leaves
    }


def dqc_check(clone: Path, size: sizes.DQCSize) -> dict[str, np.ndarray]:
    agent = dqc_agent(clone, size)
    batch, params = jax.tree.map(jnp.asarray, size.arrays()), agent.network.params
    key = jax.random.PRNGKey(1)
    actor_key = jax.random.split(key, 4)[1]  # as total_loss and actor_loss split it
    _, noise_key, time_key, _ = jax.random.split(actor_key, 4)

    @jax.jit
    def gradient(agent, batch):
        return jax.grad(lambda params: agent.total_loss(batch, params, rng=key), has_aux=True)(agent.network.params)

    grads, info = gradient(agent, batch)
    losses = {f"loss/{name}": value for name, value in info.items() if name.endswith("loss")}
    draws = {
        "noise": jax.random.normal(noise_key, (size.batch_size, size.action_horizon * size.action_dim)),
        "time": jax.random.uniform(time_key, (size.batch_size, 1)),
    }
    return {**flat("params", params), **flat("grads", grads), **losses, **draws}


def serl_check(clone: Path) -> dict[str, np.ndarray]:
    agent, size = serl_agent(clone), sizes.SERL
    rows = jax.tree.map(jnp.asarray, size.arrays())
    first = {name: array[: size.batch_size] for name, array in rows.items()}
    params, key = agent.state.params, jax.random.PRNGKey(1)

    def noise(observations, key):
        gaussian = agent.forward_policy(observations, rng=key).distribution
        return (gaussian.sample(seed=key) - gaussian.loc) / gaussian.scale_diag

    # the keys as critic_loss_fn and policy_loss_fn split them
    rest, sample_key = jax.random.split(key)
    heads_key = jax.random.split(rest)[1]
    draws = {
        "critic/next_noise": noise(first["next_observations"], sample_key),
        "critic/heads": jax.random.randint(heads_key, (size.num_min_critics,), 0, size.num_critics),
        "actor/noise": noise(rows["observations"], jax.random.split(key, 4)[2]),
    }
    found = {**flat("params", params), **draws}
    for part, name, batch in (("critic", "critic_loss_fn", first), ("actor", "policy_loss_fn", rows)):

        @jax.jit
        def gradient(agent, batch, name=name):
            return jax.value_and_grad(lambda params: getattr(agent, name)(batch, params, key)[0])(agent.state.params)

        value, grads = gradient(agent, batch)
        found |= {f"{part}/loss": value, **flat(f"{part}/grads", {part: grads[f"modules_{part}"]})}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clones", type=Path, required=True, help="folder with the clones dqc and serl")
    parser.add_argument("--check", type=Path)
    options = timing.options(parser, sizes.CASES)
    is_dqc = options.case.startswith("dqc")
    if options.check:
        clone = options.clones / ("dqc" if is_dqc else "serl")
        found = dqc_check(clone, sizes.dqc_case(options.case)[0]) if is_dqc else serl_check(clone)
        np.savez(options.check, **found)
        timing.print_result(arrays=len(found))
    else:
        timing.run((dqc_case if is_dqc else serl_case)(options.case, options.clones), options)


if __name__ == "__main__":
    main()
