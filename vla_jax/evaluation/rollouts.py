"""How often an actor solves a pure environment: whole episodes as one compiled program.

    initial keys --reset--> states --+--> observe (render) --normalize--> act --unnormalize--> chunk --+
                                     ^                                                                  |
                                     +---------- execution_horizon control steps, done ones frozen <----+

There is no automatic reset: every initial state is run once and counted once, so short episodes are not counted more
often than long ones. Episode i of a key has the same initial state whatever the batch size and whoever acts, which is
what pairs two runs. Letters: n episodes, b episodes side by side, h action horizon, e execution horizon, a action dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key, UInt8, UInt32

from vla_jax.core import errors
from vla_jax.core.types import Observation, Params
from vla_jax.envs.base import Env, EnvState
from vla_jax.envs.wrappers import BatchedEnv, ChunkedEnv
from vla_jax.learners.base import Memory

Act = Callable[[Params, Key[Array, ""], Observation, Memory], tuple[Float[Array, "b h a"], Memory]]
Unnormalize = Callable[[Float[Array, "b h a"], Float[Array, "b s"]], Float[Array, "b h a"]]  # (chunks, states)
Render = Callable[[EnvState], UInt8[Array, "height width 3"]]  # of one environment
Progress = Callable[[int, int, int], None]  # episodes finished, episodes in all, successes so far


class Episodes(struct.PyTreeNode):
    """What became of every episode, in the order of their indices."""

    success: Bool[Array, "n"]  # the environment's own flag where the episode ended
    returns: Float[Array, "n"]  # undiscounted sum of rewards
    length: Int[Array, "n"]  # control steps until it ended
    instruction: Int[Array, "n"]  # what it was judged by
    shown_instruction: Int[Array, "n"]  # what the policy was told; the same unless swapped
    initial_key: UInt32[Array, "n 2"]  # data of the key that made the initial state: equal keys, equal states


class Recording(struct.PyTreeNode):
    """Episodes as films. Past `num_frames` an episode repeats its last frame."""

    frames: UInt8[Array, "n time height width 3"]
    num_frames: Int[Array, "n"]
    episodes: Episodes


def initial_keys(key: Key[Array, ""], indices: Int[Array, "n"]) -> Key[Array, "n"]:
    """The keys that make the initial states of these episodes, each a function of `key` and its own index."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def swapped_instructions(num_instructions: int) -> tuple[int, ...]:
    """For every instruction another one to show instead, the next in the list, for the swapped-instruction control.

    A policy that solves the task without being told it ignores language. Raises ConfigError for fewer than two.
    """
    if num_instructions < 2:
        raise errors.ConfigError(
            "swapped-instruction control", expected="at least 2 instructions", found=num_instructions
        )
    return (*range(1, num_instructions), 0)


def _nothing_to_remember(batch_size: int) -> Memory:
    return ()


def _identity(value: Any) -> Any:
    return value


def _as_predicted(actions: Float[Array, "b h a"], state: Float[Array, "b s"]) -> Float[Array, "b h a"]:
    return actions


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """One way of running an actor in an environment. Keep the object: it holds the compiled programs.

    `normalize` and `unnormalize` are the pure functions at the policy's edges: observation in physical units to what
    the networks were trained on, and chunks back to the environment's [-1, 1], given the state in physical units too
    (actions may be relative to it). Chunks wider than the robot's actions
    (padded action dims) are cut.
    """

    env: Env
    act: Act
    execution_horizon: int  # control steps run before looking again, at most the action horizon
    initial_memory: Callable[[int], Memory] = _nothing_to_remember  # of a batch size
    normalize: Callable[[Observation], Observation] = _identity
    unnormalize: Unnormalize = _as_predicted
    shown_instructions: tuple[int, ...] | None = None  # instruction -> the one the policy is told instead

    def __post_init__(self):
        if self.execution_horizon < 1:
            raise errors.ConfigError("rollout", expected="execution_horizon >= 1", found=self.execution_horizon)
        count = len(self.env.spec.instructions)
        if self.shown_instructions is not None and sorted(self.shown_instructions) != list(range(count)):
            raise errors.ConfigError(
                f"shown_instructions of {self.env.spec.name}",
                expected=f"a permutation of 0 to {count - 1}",
                found=self.shown_instructions,
                fix="swapped_instructions(len(env.spec.instructions)) makes one",
            )

    @property
    def num_decisions(self) -> int:
        """How often the policy looks in the longest episode."""
        return -(-self.env.spec.episode_length // self.execution_horizon)

    def evaluate(
        self,
        actor_params: Params,
        key: Key[Array, ""],
        num_episodes: int,
        batch_size: int,
        *,
        progress: Progress | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> Episodes:
        """Run episodes 0 to `num_episodes - 1` of `key`, `batch_size` at a time, and return numpy arrays.

        The last batch is filled up and its surplus dropped, so one program serves every batch. Initial states depend
        on `key` and the index only; the noise of a sampling policy depends on `batch_size` too. `sharding` spreads a
        batch over devices.
        """
        if num_episodes < 1 or batch_size < 1:
            raise errors.ConfigError(
                "evaluation", expected="num_episodes and batch_size >= 1", found=f"{num_episodes} and {batch_size}"
            )
        batch_size = min(batch_size, num_episodes)
        batches, successes = [], 0
        for start in range(0, num_episodes, batch_size):
            indices = jax.device_put(np.arange(start, start + batch_size, dtype=np.int32), sharding)
            real = min(batch_size, num_episodes - start)
            batches.append(
                jax.tree.map(lambda x, real=real: x[:real], jax.device_get(self._run(actor_params, key, indices)))
            )
            successes += int(batches[-1].success.sum())
            if progress is not None:
                progress(start + real, num_episodes, successes)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)

    def record(
        self,
        actor_params: Params,
        key: Key[Array, ""],
        indices: tuple[int, ...],
        *,
        camera: str = "front",
        render: Render | None = None,
        frame_stride: int = 1,
    ) -> Recording:
        """Film the episodes with these indices, the same that `evaluate` ran with the same key.

        One frame at the start and one after every `frame_stride` control steps, which must divide the execution
        horizon. `render` draws one state, for example with the same environment made for larger images; without it
        the frames are what the policy sees from `camera`. A sampling policy draws other noise than in a batch of
        another size. Pass the same function again to reuse the compiled program.
        """
        if self.execution_horizon % frame_stride:
            raise errors.ConfigError(
                "recording", expected=f"frame_stride divides {self.execution_horizon}", found=frame_stride
            )
        if render is None and camera not in self.env.spec.cameras:
            raise errors.ConfigError(
                f"{self.env.spec.name} has no camera {camera!r}", fix=errors.closest(camera, self.env.spec.cameras)
            )
        film = self._film(camera, render, frame_stride)
        return jax.device_get(film(actor_params, key, np.array(indices, np.int32)))

    @functools.cached_property
    def _run(self) -> Callable[[Params, Key[Array, ""], Int[Array, "b"]], Episodes]:
        def run(actor_params, key, indices):
            state, episodes = self._start(key, indices)
            acting_key = _acting_key(key, indices)

            def is_running(carry):
                decision, state, *_ = carry
                return (decision < self.num_decisions) & ~jnp.all(state.done)

            def decide(carry):
                decision, state, memory, episodes = carry
                actions, memory = self._decide(actor_params, jax.random.fold_in(acting_key, decision), state, memory)
                state, episodes = self._execute(state, episodes, actions)
                return decision + 1, state, memory, episodes

            carry = (jnp.int32(0), state, self.initial_memory(indices.shape[0]), episodes)
            return jax.lax.while_loop(is_running, decide, carry)[-1]

        return jax.jit(run)

    @functools.lru_cache  # noqa: B019  (a rollout lives as long as its programs)
    def _film(self, camera: str, render: Render | None, frame_stride: int) -> Callable[..., Recording]:
        draw = jax.vmap(render or (lambda state: self.env.observe(state).images[camera]))

        def film(actor_params, key, indices):
            state, episodes = self._start(key, indices)
            acting_key = _acting_key(key, indices)
            first = draw(state)

            def decide(carry, decision):
                state, memory, episodes = carry
                actions, memory = self._decide(actor_params, jax.random.fold_in(acting_key, decision), state, memory)
                shots = actions.reshape(actions.shape[0], -1, frame_stride, actions.shape[2])
                (state, episodes), frames = jax.lax.scan(shoot, (state, episodes), jnp.moveaxis(shots, 1, 0))
                return (state, memory, episodes), frames

            def shoot(carry, actions):
                carry = self._execute(*carry, actions)
                return carry, draw(carry[0])

            carry = (state, self.initial_memory(indices.shape[0]), episodes)
            (_, _, episodes), frames = jax.lax.scan(decide, carry, jnp.arange(self.num_decisions))
            frames = jnp.concatenate([first[None], frames.reshape(-1, *first.shape)])
            num_frames = 1 + (episodes.length + frame_stride - 1) // frame_stride
            return Recording(jnp.moveaxis(frames, 0, 1), num_frames, episodes)

        return jax.jit(film)

    def _start(self, key: Key[Array, ""], indices: Int[Array, "b"]) -> tuple[EnvState, Episodes]:
        keys = initial_keys(key, indices)
        state = BatchedEnv(self.env).reset(keys)
        shown = state.instruction if self.shown_instructions is None else self._shown(state.instruction)
        episodes = Episodes(
            success=state.success,
            returns=jnp.zeros_like(state.reward),
            length=jnp.zeros_like(state.env_step),
            instruction=state.instruction,
            shown_instruction=shown,
            initial_key=jax.random.key_data(keys),
        )
        return state, episodes

    def _decide(
        self, actor_params: Params, key: Key[Array, ""], state: EnvState, memory: Memory
    ) -> tuple[Float[Array, "b e a"], Memory]:
        """Look once and choose the actions of the next `execution_horizon` control steps."""
        if self.shown_instructions is not None:
            state = state.replace(instruction=self._shown(state.instruction))
        observation = BatchedEnv(self.env).observe(state)
        actions, memory = self.act(actor_params, key, self.normalize(observation), memory)
        actions = self.unnormalize(actions, observation.state)
        action_dim = self.env.spec.action_dim
        if actions.ndim != 3 or actions.shape[1] < self.execution_horizon or actions.shape[2] < action_dim:
            raise errors.ConfigError(
                f"the actor's chunk does not fit {self.env.spec.name}",
                expected=f"[b, h >= {self.execution_horizon} (execution_horizon), a >= {action_dim}]",
                found=list(actions.shape),
            )
        return actions[:, : self.execution_horizon, :action_dim], memory

    def _execute(
        self, state: EnvState, episodes: Episodes, actions: Float[Array, "b e a"]
    ) -> tuple[EnvState, Episodes]:
        chunk = ChunkedEnv(BatchedEnv(self.env)).step(state, actions)
        episodes = episodes.replace(
            success=chunk.state.success,
            returns=episodes.returns + jnp.sum(jnp.where(chunk.mask, chunk.rewards, 0), axis=1),
            length=episodes.length + jnp.sum(chunk.mask, axis=1, dtype=episodes.length.dtype),
        )
        return chunk.state, episodes

    def _shown(self, instruction: Int[Array, "b"]) -> Int[Array, "b"]:
        return jnp.array(self.shown_instructions, instruction.dtype)[instruction]


def evaluate(
    env: Env,
    act: Act,
    actor_params: Params,
    key: Key[Array, ""],
    *,
    num_episodes: int,
    batch_size: int,
    execution_horizon: int,
    initial_memory: Callable[[int], Memory] = _nothing_to_remember,
    normalize: Callable[[Observation], Observation] = _identity,
    unnormalize: Unnormalize = _as_predicted,
    swap_instructions: bool = False,
    progress: Progress | None = None,
) -> Episodes:
    """Evaluate once; see `Rollout`, which compiles once for many evaluations.

    `swap_instructions` tells the policy another instruction than the one it is judged by.
    """
    shown = swapped_instructions(len(env.spec.instructions)) if swap_instructions else None
    rollout = Rollout(env, act, execution_horizon, initial_memory, normalize, unnormalize, shown)
    return rollout.evaluate(actor_params, key, num_episodes, batch_size, progress=progress)


def _acting_key(key: Key[Array, ""], indices: Int[Array, "b"]) -> Key[Array, ""]:
    """The key of a batch's policy noise, apart from the keys of its initial states."""
    return jax.random.fold_in(jax.random.split(key, 2)[1], indices[0])
