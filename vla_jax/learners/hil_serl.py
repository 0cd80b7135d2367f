"""HIL-SERL's hybrid learner: a learner of continuous actions, and beside it a small DQN that opens and closes the grip.

Luo, Xu, Wu, Levine, "Precise and Dexterous Robotic Manipulation via Human-in-the-Loop Reinforcement Learning" (arXiv
2410.21845). A gripper is open or closed, and a Gaussian is a poor policy for that. So the last action dim is left out
of what the learner of the arm (RLPD) sees, and a critic with one value per command chooses it.

    features --+-- arm: actor and critics of the other dims, untouched
               +-- grasp: Q(features, command), command in {open, hold, close}; double DQN

The grip's critic takes the arm's features as they are: its gradient ends in its own head. Unlike the released code,
where it trains an encoder as well, every command but the one to hold costs `penalty` (there only one that changes what
the grip does), and exploring may draw a command at random; there the operator's interventions are all there is. A
command holds for a whole chunk.
"""

import dataclasses
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Float, Int, Key

from vla_jax.core import errors, functional, images
from vla_jax.core.types import Metrics, Observation, Params, Transitions
from vla_jax.learners.base import Memory, scan_updates
from vla_jax.learners.rlpd import RLPDConfig
from vla_jax.losses import td
from vla_jax.nets.mlp import MLP, Activation, Norm


class Arm(Protocol):
    """The learner of the other dims: one that explores and whose `observe` gives features; RLPD is one."""

    def init(self, key: Key[Array, ""], example_batch: Any = None) -> Any: ...

    def update(self, state: Any, key: Key[Array, ""], batch: Transitions) -> tuple[Any, Metrics]: ...

    def actor(self, state: Any) -> Params: ...

    def without_frozen(self, state: Any) -> Any: ...

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: Memory
    ) -> tuple[Float[Array, "b h a"], Memory]: ...

    def observe(
        self, actor_params: Params, key: Key[Array, ""], observation: Any
    ) -> tuple[Float[Array, "b f"], Any]: ...

    def explore(
        self, actor_params: Params, key: Key[Array, ""], features: Float[Array, "b f"]
    ) -> Float[Array, "b h a"]: ...


@dataclasses.dataclass(frozen=True)
class GraspConfig:
    """Defaults: HIL-SERL's released values. Its learning rate is 3e-4 (Adam)."""

    commands: tuple[float, ...] = (-1.0, 0.0, 1.0)  # the last action dim takes one of these
    hold: float = 0.0  # the one among them that is free
    penalty: float = 0.05  # taken off the reward for the others
    hidden_dims: tuple[int, ...] = (256, 256)
    norm: Norm = "before"
    activation: Activation = "tanh"
    discount: float = 0.97  # per control step
    target_update_rate: float = 0.005
    epsilon: float = 0.0  # share of random commands while exploring
    crop_pad: int = 4  # pixels that pictures are moved by

    def __post_init__(self):
        if self.hold not in self.commands or len(set(self.commands)) != len(self.commands):
            raise errors.ConfigError(
                "GraspConfig.commands", expected=f"different ones, hold = {self.hold} among them", found=self.commands
            )
        if not 0 <= self.epsilon <= 1 or self.penalty < 0:
            raise errors.ConfigError(
                "GraspConfig", expected="epsilon in [0, 1], penalty of at least 0", found=(self.epsilon, self.penalty)
            )


@dataclasses.dataclass(frozen=True)
class HilSerlConfig:
    """Both parts, for recipes; the arm is RLPD's."""

    arm: RLPDConfig = RLPDConfig(num_critics=2, discount=0.97)
    grasp: GraspConfig = GraspConfig()

    @property
    def action_horizon(self) -> int:
        return self.arm.action_horizon

    @property
    def discount(self) -> float:
        return self.arm.discount


class HilSerlState(struct.PyTreeNode):
    step: Int[Array, ""]
    arm: Any
    params: Params  # of the grip's critic
    target: Params  # their slow copy
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class HilSerl:
    """`arm` has one action dim less than the environment."""

    arm: Arm
    feature_dim: int
    optimizer: optax.GradientTransformation  # of the grip's critic
    config: GraspConfig = GraspConfig()

    @cached_property
    def critic(self) -> functional.Net[MLP]:
        """Features to a value for each command, "b n"."""
        return functional.describe(self._make)[0]

    def init(self, key: Key[Array, ""], example_batch: Transitions | None = None) -> HilSerlState:
        arm_key, grasp_key = jax.random.split(key)
        params = functional.init(self._make, grasp_key)[1]
        target = jax.tree.map(jnp.copy, params)  # a copy: donated buffers may not alias
        arm = self.arm.init(arm_key)
        return HilSerlState(jnp.zeros((), jnp.int32), arm, params, target, self.optimizer.init(params))

    def without_frozen(self, state: HilSerlState) -> HilSerlState:
        return state.replace(arm=self.arm.without_frozen(state.arm))

    def _make(self, rngs: nnx.Rngs) -> MLP:
        config = self.config
        shape = dict(norm=config.norm, activation=config.activation)
        return MLP(self.feature_dim, config.hidden_dims, len(config.commands), rngs, **shape)

    # --- acting ----------------------------------------------------------------------------------------------------

    def actor(self, state: HilSerlState) -> Params:
        return {"arm": self.arm.actor(state.arm), "grasp": state.params}

    def initial_memory(self, batch_size: int) -> tuple[()]:
        return ()

    def act(
        self, actor_params: Params, key: Key[Array, ""], observation: Observation, memory: tuple[()]
    ) -> tuple[Float[Array, "b h a"], tuple[()]]:
        """What the arm does without exploring, and the best command."""
        moves, _ = self.arm.act(actor_params["arm"], key, observation, memory)
        features, _ = self.observe(actor_params, key, observation)
        return self._with_commands(moves, self._best(actor_params["grasp"], features)), memory

    def observe(self, actor_params: Params, key: Key[Array, ""], observation: Any) -> tuple[Float[Array, "b f"], Any]:
        return self.arm.observe(actor_params["arm"], key, observation)

    def explore(
        self, actor_params: Params, key: Key[Array, ""], features: Float[Array, "b f"]
    ) -> Float[Array, "b h a"]:
        """The arm explores, the grip is epsilon-greedy."""
        arm_key, whether_key, which_key = jax.random.split(key, 3)
        moves, best = (
            self.arm.explore(actor_params["arm"], arm_key, features),
            self._best(actor_params["grasp"], features),
        )
        any_command = jax.random.randint(which_key, best.shape, 0, len(self.config.commands))
        is_random = jax.random.bernoulli(whether_key, self.config.epsilon, best.shape)
        return self._with_commands(moves, jnp.where(is_random, any_command, best))

    def _best(self, grasp: Params, features: Float[Array, "b f"]) -> Int[Array, "b"]:
        return self.critic.bind(grasp)(features).argmax(axis=-1)

    def _with_commands(self, moves: Float[Array, "b h m"], commands: Int[Array, "b"]) -> Float[Array, "b h a"]:
        values = jnp.array(self.config.commands)[commands]
        return jnp.concatenate([moves, jnp.broadcast_to(values[:, None, None], (*moves.shape[:2], 1))], axis=-1)

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, state: HilSerlState, key: Key[Array, ""], batch: Transitions) -> tuple[HilSerlState, Metrics]:
        """The arm's update on its dims, then a step of the grip's critic on every minibatch of [rounds, updates, b]."""
        arm_key, grasp_key = jax.random.split(key)
        moves = batch.replace(actions=batch.actions[..., :-1])
        arm, metrics = self.arm.update(state.arm, arm_key, moves)
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
        state, grasp_metrics = scan_updates(self._grasp_step, state.replace(arm=arm), grasp_key, rows)
        return state.replace(step=state.step + 1), metrics | grasp_metrics

    def _grasp_step(self, state: HilSerlState, inputs) -> tuple[HilSerlState, Metrics]:
        key, batch = inputs
        now_key, next_key = jax.random.split(key)
        features, next_features = (
            jax.lax.stop_gradient(self._features(state, *each))
            for each in ((now_key, batch.observation), (next_key, batch.next_observation))
        )
        targets = jax.lax.stop_gradient(self.targets(state, batch, next_features))
        loss_and_grads = jax.value_and_grad(self.grasp_loss, has_aux=True)
        (loss, mean_q), grads = loss_and_grads(state.params, features, self.commands_of(batch.actions), targets)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target = optax.incremental_update(params, state.target, self.config.target_update_rate)
        metrics = {"grasp/loss": loss, "grasp/q_values": mean_q, "grasp/targets": targets.mean()}
        return state.replace(params=params, target=target, opt_state=opt_state), metrics

    def targets(self, state: HilSerlState, batch: Transitions, next_features: Float[Array, "b f"]) -> Float[Array, "b"]:
        """Return inside the chunk less the penalty, and the discounted slow value of the next command, which the fast
        critic chooses."""
        returns, factor = td.chunk_return(batch.rewards, batch.discounts, batch.action_mask, self.config.discount)
        is_free = jnp.array(self.config.commands)[self.commands_of(batch.actions)] == self.config.hold
        rewards = returns - jnp.where(is_free, 0.0, self.config.penalty)
        fast, slow = (self.critic.bind(params)(next_features) for params in (state.params, state.target))
        return td.double_q_targets(rewards, factor, fast, slow)

    def grasp_loss(
        self, params: Params, features: Float[Array, "b f"], commands: Int[Array, "b"], targets: Float[Array, "b"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean squared error of the values of the commands that were given, and the mean of these values."""
        q_values = jnp.take_along_axis(self.critic.bind(params)(features), commands[:, None], axis=-1)[:, 0]
        return jnp.square(q_values - targets).mean(), q_values.mean()

    def commands_of(self, actions: Float[Array, "b h a"]) -> Int[Array, "b"]:
        """The command nearest to the last dim of a chunk's first step: demonstrations are not of commands alone."""
        distances = jnp.abs(actions[:, 0, -1:] - jnp.array(self.config.commands)[None])
        return distances.argmin(axis=-1)

    def _features(self, state: HilSerlState, key: Key[Array, ""], observation: Any) -> Float[Array, "b f"]:
        if isinstance(observation, Observation):
            observation = images.crop_observation(key, observation, self.config.crop_pad)
        return self.arm.observe(self.arm.actor(state.arm), key, observation)[0]
