"""An environment on the host and a policy that acts in it: one decision after the other, each a row for the learner.

    observation --observe, explore--> chunk --env--> next observation      one row: observation, chunk, rewards
    end of an episode: one row more that only holds the last observation, to bootstrap from

Everything that is drawn follows from the config's seed and the number of the decision or episode, so an actor that is
restored from `state` goes on to the bit, if its environment is a function of its seed and actions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Key

from vla_jax.core import errors, keys
from vla_jax.core.types import Observation, Params, Transitions
from vla_jax.envs.base import EnvSpec
from vla_jax.envs.host import HostEnv
from vla_jax.training.actor_learner.spool import ActorRow
from vla_jax.training.interventions import TAG
from vla_jax.training.online import Explores

Chunk = Float32[np.ndarray, "h a"]
Intervene = Callable[[Observation, Chunk], Chunk | None]  # observation and chunk of the robot -> what to run instead


def _identity(value: Any) -> Any:
    return value


def _as_predicted(actions: Float[Array, "b h a"], state: Float[Array, "b s"]) -> Float[Array, "b h a"]:
    return actions


@dataclasses.dataclass(frozen=True)
class Edges:
    """Between the units of the environment and those of the policy; all batched, as in evaluation."""

    normalize: Callable[[Observation], Observation] = _identity
    unnormalize: Callable[[Float[Array, "b h a"], Float[Array, "b s"]], Float[Array, "b h a"]] = _as_predicted
    normalize_actions: Callable[[Float[Array, "b h a"]], Float[Array, "b h a"]] = _identity  # of an operator


class Actor:
    """One environment. `decide` runs one chunk in it."""

    def __init__(
        self,
        env: HostEnv,
        learner: Explores,
        *,
        seed: int = 0,
        edges: Edges | None = None,
        intervene: Intervene | None = None,
    ):
        """`intervene` is asked before every chunk; what it gives is run, and stored as the policy's action with the tag
        `interventions.TAG`."""
        self._env, self._edges, self._intervene = env, edges or Edges(), intervene
        self._seed, self._key = seed, keys.stream(seed, "act")
        self._observation: Observation | None = None  # of the running episode
        self._num_decisions = self._num_episodes = 0
        self._ran: list[Chunk] = []  # in the running episode, to come back to this point
        self._act = jax.jit(functools.partial(act, learner, self._edges))

    def decide(self, params: Params, version: int) -> list[ActorRow]:
        """Look, act, run the chunk. One row, and one more where the episode ended. Raises what the environment does."""
        is_first = self._observation is None
        if is_first:
            self._begin()
        before = self._observation
        key = keys.at_step(self._key, self._num_decisions)
        stored, actions, robot_actions = jax.device_get(self._act(params, key, _batched(before)))
        run, given = robot_actions[0], None if self._intervene is None else self._intervene(before, robot_actions[0])
        if given is not None:
            run = np.asarray(given, np.float32)
            actions = np.asarray(self._edges.normalize_actions(run[None]), np.float32)
        chunk = self._env.step(run)
        self._num_decisions += 1
        self._ran.append(run)
        self._observation = None if chunk.done else chunk.observation
        extras = {TAG: np.asarray(given is not None)}
        columns = (chunk.rewards, chunk.discounts, chunk.mask)
        row = Transitions(_first(stored), actions[0], *map(np.asarray, columns), None, extras)
        rows = [ActorRow(row, is_first, version, float("nan"))]
        if chunk.done:
            last = jax.device_get(self._act(params, key, _batched(chunk.observation))[0])
            arrived = row.replace(
                observation=_first(last),
                rewards=np.zeros_like(row.rewards),
                discounts=np.ones_like(row.discounts),
                action_mask=np.zeros_like(row.action_mask),
                extras={TAG: np.asarray(False)},
            )
            rows.append(ActorRow(arrived, False, version, float(chunk.success)))
            self._num_episodes += 1
        return rows

    def warm_up(self, params: Params, prompt_length: int = 1) -> None:
        """Compile what acting needs, before the environment is touched."""
        zeros = example_observation(self._env.spec, prompt_length)
        jax.block_until_ready(self._act(params, self._key, _batched(zeros)))

    def state(self, action_horizon: int) -> dict[str, Any]:
        """Everything that goes on between two decisions, arrays of the same shapes whatever has happened."""
        spec = self._env.spec
        ran = np.zeros((spec.episode_length, action_horizon, spec.action_dim), np.float32)
        num_ran = 0 if self._observation is None else len(self._ran)
        if num_ran:
            ran[:num_ran] = np.stack(self._ran)
        counts = {"decisions": self._num_decisions, "episodes": self._num_episodes, "num_ran": num_ran}
        is_running = np.asarray(self._observation is not None)
        return {**{name: np.asarray(count) for name, count in counts.items()}, "ran": ran, "is_running": is_running}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a `state`: the episode is begun again from its seed, and its chunks are run again.

        Raises EnvError where the environment ends the episode on the way: it is no function of its seed and actions.
        """
        self._num_decisions, self._num_episodes = int(state["decisions"]), int(state["episodes"])
        self._observation = None
        if not bool(state["is_running"]):
            return
        self._begin()
        for actions in np.asarray(state["ran"])[: int(state["num_ran"])]:
            chunk = self._env.step(actions)
            if chunk.done:
                raise errors.EnvError(
                    f"{self._env.spec.name}: going back to a checkpoint",
                    expected="the episode that was running then",
                    found="it ends earlier: equal seeds and actions do not give equal episodes here",
                    fix="resume with actors elsewhere, which begin a fresh episode",
                )
            self._ran.append(actions)
            self._observation = chunk.observation

    def _begin(self) -> None:
        words = np.random.SeedSequence([self._seed, self._num_episodes]).generate_state(1)
        self._observation, self._ran = self._env.reset(int(words[0]) & 0x7FFFFFFF), []


def act(
    learner: Explores, edges: Edges, params: Params, key: Key[Array, ""], observation: Observation
) -> tuple[Any, Float[Array, "b h a"], Float[Array, "b h a"]]:
    """What the buffer keeps of the observation, the policy's chunk, and the same in the robot's units."""
    observe_key, explore_key = jax.random.split(key)
    view, stored = learner.observe(params, observe_key, edges.normalize(observation))
    actions = learner.explore(params, explore_key, view)
    return stored, actions, edges.unnormalize(actions, observation.state)


def row_of(
    learner: Explores, abstract_actor: Params, spec: EnvSpec, *, prompt_length: int = 1, edges: Edges | None = None
) -> Transitions:
    """Shapes and dtypes of the rows that actors in such environments send, without an environment."""
    observation = _batched(example_observation(spec, prompt_length))
    inputs = (abstract_actor, jax.random.key(0), observation)
    stored, actions, _ = jax.eval_shape(lambda *i: act(learner, edges or Edges(), *i), *inputs)
    _, horizon, action_dim = actions.shape

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    return Transitions(
        observation=jax.tree.map(lambda leaf: array(leaf.shape[1:], leaf.dtype), stored),
        actions=array((horizon, action_dim), np.float32),
        rewards=array((horizon,), np.float32),
        discounts=array((horizon,), np.float32),
        action_mask=array((horizon,), bool),
        next_observation=None,
        extras={TAG: array((), bool)},
    )


def example_observation(spec: EnvSpec, prompt_length: int = 1) -> Observation:
    """Zeros of the shapes that an environment with this spec shows, unbatched."""
    return Observation(
        images={name: np.zeros((*size, 3), np.uint8) for name, size in spec.cameras.items()},
        image_mask={name: np.asarray(True) for name in spec.cameras},
        state=np.zeros(spec.state_dim, np.float32),
        prompt=np.zeros(prompt_length, np.int32),
        prompt_mask=np.zeros(prompt_length, bool),
    )


def _batched(observation: Observation) -> Observation:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], observation)


def _first(stored: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], stored)
