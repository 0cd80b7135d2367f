"""brax both ways: its environments by our contract, and ours as what brax's own trainers take.

    env = FromBrax(brax.envs.get_environment("inverted_pendulum"), "brax/inverted_pendulum", episode_length=500)

    theirs = to_brax(TabletopConfig("lift").make(prompts), observe=env.env_state)
    with replicated_puts():
        make_policy, params, metrics = ppo.train(theirs, episode_length=theirs.episode_length, ...)

brax counts time in a wrapper of its trainers, we in the environment; an episode that only ran out of time must not look
like one whose task ended, so each direction says below who counts. brax is an optional extra, tested with 0.14.2.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vla_jax.core import errors
from vla_jax.core.types import Observation, PromptTable
from vla_jax.envs.base import Env, EnvSpec, EnvState
from vla_jax.envs.host import no_prompts

Observe = Callable[[EnvState], Float[Array, "s"]]
Reward = Callable[[EnvState, EnvState], Float[Array, ""]]  # of the states before and after a step
_TIME = ("truncation", "time_out")  # entries of brax's info by which an environment says that only time ran out


def require() -> None:
    """Raises EnvError where brax is not installed."""
    if importlib.util.find_spec("brax") is None:
        raise errors.EnvError("brax is not installed", fix='pip install "vla-jax[brax]"')


class FromBrax:
    """A brax environment as `base.Env`: pure, of one environment, state observations.

    Give it unwrapped: time is counted here, and nothing resets itself. brax's `done` ends the task (discount 0), unless
    the environment says by `truncation` or `time_out` in its info that only time ran out. brax's metrics become `info`.
    """

    def __init__(
        self,
        env: Any,
        name: str,
        episode_length: int = 1000,
        *,
        control_hz: float | None = None,
        observation_keys: Sequence[str] = (),
        success: Callable[[Any], Bool[Array, ""]] | None = None,
        prompts: PromptTable | None = None,
    ):
        """`observation_keys` of an environment that observes a dict, joined in this order. `success` of a brax state;
        without it nobody knows and it is False. `control_hz`: 1 / env.dt unless given."""
        require()
        self._env, self._keys, self._success = env, tuple(observation_keys), success
        shape = jax.eval_shape(env.reset, jax.ShapeDtypeStruct((2,), jnp.uint32))
        size = jax.eval_shape(self._vector, shape.obs).shape[0]
        self.spec = EnvSpec(
            name=name,
            instructions=("",),
            action_names=tuple(f"action_{i}" for i in range(env.action_size)),
            state_names=tuple(f"observation_{i}" for i in range(size)),
            cameras={},
            episode_length=episode_length,
            control_hz=control_hz or 1.0 / float(env.dt),
        )
        self._prompts = jax.tree.map(jnp.asarray, prompts or no_prompts(self.spec))

    def reset(self, key: Key[Array, ""]) -> EnvState:
        key, reset_key = jax.random.split(key)
        physics = self._env.reset(jax.random.key_data(reset_key))
        return EnvState(
            physics=physics,
            key=key,
            env_step=jnp.zeros((), jnp.int32),
            instruction=jnp.zeros((), jnp.int32),
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            done=jnp.zeros((), bool),
            success=jnp.zeros((), bool),
            info=_metrics(physics),
        )

    def step(self, state: EnvState, action: Float[Array, "a"]) -> EnvState:
        # brax's states carry dicts that its wrappers write into: give it one of its own.
        physics = self._env.step(jax.tree.map(lambda leaf: leaf, state.physics), jnp.clip(action, -1, 1))
        ended, cut = physics.done > 0, jnp.zeros((), bool)
        for name in _TIME:
            cut |= jnp.asarray(physics.info[name]) > 0 if name in physics.info else False
        env_step = state.env_step + 1
        success = jnp.zeros((), bool) if self._success is None else self._success(physics)
        stepped = state.replace(
            physics=physics,
            env_step=env_step,
            reward=physics.reward.astype(jnp.float32),
            discount=1 - (ended & ~cut).astype(jnp.float32),
            done=ended | cut | (env_step >= self.spec.episode_length),
            success=state.success | success,
            info=_metrics(physics),
        )
        frozen = state.replace(reward=jnp.zeros(()))
        return jax.tree.map(functools.partial(jnp.where, state.done), frozen, stepped)

    def observe(self, state: EnvState) -> Observation:
        return Observation(
            images={},
            image_mask={},
            state=self._vector(state.physics.obs),
            prompt=self._prompts.tokens[state.instruction],
            prompt_mask=self._prompts.mask[state.instruction],
        )

    def _vector(self, observed: Any) -> Float[Array, "s"]:
        if not hasattr(observed, "keys"):
            return observed.astype(jnp.float32)
        missing = [key for key in self._keys if key not in observed]
        if missing or not self._keys:
            raise errors.EnvError(
                "a brax environment that observes a dict",
                expected="observation_keys, of these: " + ", ".join(sorted(observed)),
                found=", ".join(self._keys) or "none",
            )
        return jnp.concatenate([observed[key].astype(jnp.float32).ravel() for key in self._keys])


def _metrics(physics: Any) -> dict[str, Float[Array, ""]]:
    return {name: jnp.asarray(value, jnp.float32) for name, value in physics.metrics.items()}


def robot_state(env: Env) -> Observe:
    """What `to_brax` shows unless told otherwise: the state a policy sees, physical units; pictures are not drawn."""
    return lambda state: env.observe(state).state


def to_brax(env: Env, *, observe: Observe | None = None, reward: Reward | None = None) -> Any:
    """Our environment as a `brax.envs.base.Env`, for brax's trainers. Raises EnvError without brax.

    brax counts time: train with `episode_length=env.spec.episode_length` (the result has it as `episode_length`). Our
    own limit does not end the episode here, and `done` is 1 only where the task ended (discount 0), so that brax's
    wrappers can tell: at their limit they set `truncation`, and bootstrap. `observe` gives what the agent sees, such as
    `env.env_state` of the MJX suites; `reward` may replace the environment's own. Metrics are `success` and our info.
    """
    require()
    return _to_brax_class()(env, observe or robot_state(env), reward)


@functools.cache
def _to_brax_class() -> type:
    from brax.envs import base

    class ToBrax(base.Env):
        """See `to_brax`."""

        def __init__(self, env: Env, observe: Observe, reward: Reward | None):
            self._env, self._observe, self._reward = env, observe, reward
            key = jax.eval_shape(jax.random.key, 0)
            self._observation_size = jax.eval_shape(lambda key: observe(env.reset(key)), key).shape[0]

        def reset(self, rng: Array) -> base.State:
            is_typed = jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key)
            state = self._env.reset(rng if is_typed else jax.random.wrap_key_data(rng))
            return base.State(
                pipeline_state=_packed(state),
                obs=self._observe(state),
                reward=jnp.zeros(()),
                done=jnp.zeros(()),
                metrics=_shown(state),
            )

        def step(self, state: base.State, action: Float[Array, "a"]) -> base.State:
            before = _unpacked(state.pipeline_state)
            # Out of time by our count is no end here, so an episode goes on for as long as brax wants.
            before = before.replace(done=before.done & (before.discount == 0))
            after = self._env.step(before, action)
            earned = after.reward if self._reward is None else self._reward(before, after)
            return state.replace(
                pipeline_state=_packed(after),
                obs=self._observe(after),
                reward=earned.astype(jnp.float32),
                done=1 - after.discount,
                metrics={**state.metrics, **_shown(after)},
            )

        @property
        def episode_length(self) -> int:
            return self._env.spec.episode_length

        @property
        def dt(self) -> float:
            return 1.0 / self._env.spec.control_hz

        @property
        def observation_size(self) -> int:
            return self._observation_size

        @property
        def action_size(self) -> int:
            return self._env.spec.action_dim

        @property
        def backend(self) -> str:
            return "vla_jax"

    return ToBrax


def _shown(state: EnvState) -> dict[str, Float[Array, ""]]:
    return {"success": state.success.astype(jnp.float32), **state.info}


def _packed(state: EnvState) -> EnvState:
    """Keys as plain integers: brax's wrappers and buffers know no others."""
    return state.replace(key=jax.random.key_data(state.key))


def _unpacked(state: EnvState) -> EnvState:
    return state.replace(key=jax.random.wrap_key_data(state.key))


@contextlib.contextmanager
def replicated_puts() -> Iterator[None]:
    """Within it `jax.device_put_replicated` exists, which brax 0.14.2's trainers call and jax 0.10 no longer has.

    Where jax has it, nothing changes. It changes the module `jax` for the whole process while it lasts: use it around a
    trainer's call and nothing else.
    """
    if hasattr(jax, "device_put_replicated"):
        yield
        return
    jax.device_put_replicated = _device_put_replicated
    try:
        yield
    finally:
        del jax.device_put_replicated


def _device_put_replicated(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Every leaf once per device, along a new first axis."""
    return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(devices)), tree)
