"""A batch of requests through the policy: fixed batch sizes, compiled before anyone waits for them.

Every row has its own key, made from the request's seed, so an answer does not depend on who else is in the batch: row
by row it is `learner.act(params, jax.random.key(seed), observation, ())`, up to rounding. A batch is filled up to the
next compiled size with copies of its last row.

Letters: b batch, h action horizon, a action dim, r the robot's action dim.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, UInt32

from vla_jax.core import errors, functional, runtime
from vla_jax.core.types import Observation, Params
from vla_jax.policies.base import HasPrefix, HasVelocity, require
from vla_jax.samplers.guided import GuidanceOptions, guided_euler, prefix_weights
from vla_jax.serving.keys import Previous, Request
from vla_jax.training.trained import TrainedPolicy

Chunk = Float32[np.ndarray, "h r"]  # actions in the robot's units
Clock = Callable[[], float]  # seconds


class BatchActor:
    """Answers batches of requests. With `guidance`, requests that carry the chunk being run are answered by real-time
    chunking; a batch holds only requests of one kind, see `kind`."""

    def __init__(
        self,
        policy: TrainedPolicy,
        batch_sizes: Sequence[int] = (1, 2, 4, 8),
        *,
        seed: int = 0,
        guidance: GuidanceOptions | None = None,
        clock: Clock = time.perf_counter,
    ):
        """`seed` draws the seeds of requests that bring none. Raises ConfigError for a policy that keeps a memory
        between calls, and for `guidance` of a policy that has no velocity field."""
        if not batch_sizes or min(batch_sizes) < 1:
            raise errors.ConfigError("batch_sizes", expected="at least one, each 1 or more", found=tuple(batch_sizes))
        if jax.tree.leaves(policy.learner.initial_memory(1)):
            raise errors.ConfigError(
                f"{policy.path}: the policy keeps a memory between calls", expected="a policy without memory, to serve"
            )
        self.batch_sizes = tuple(sorted(set(batch_sizes)))
        self._policy, self._clock = policy, clock
        self._params = jax.device_put(policy.params)
        self._seeds = np.random.default_rng(seed)
        functions = {False: jax.vmap(self._act, in_axes=(None, 0, 0))}
        if guidance is not None:
            net = functional.describe(policy.constructor)[0]
            require(net.bind(policy.params), HasPrefix, HasVelocity)
            functions[True] = guided_act(policy, net, guidance)
        self._functions = functions
        self._compiled: dict[tuple[bool, int], Callable[..., Float[Array, "b h r"]]] = {}

    @property
    def max_batch(self) -> int:
        return self.batch_sizes[-1]

    def kind(self, request: Request) -> bool:
        """Requests of one kind may share a batch: those to be guided, and the others."""
        return request.previous is not None

    def warm_up(self) -> float:
        """Compile every batch size and run it once. Returns the seconds that took."""
        start = self._clock()
        blank = self._blank()
        for guided in self._functions:
            previous = Previous(np.zeros(self._chunk_shape, np.float32), 1, 1) if guided else None
            for size in self.batch_sizes:
                arguments = self._batch([dataclasses.replace(blank, previous=previous)] * size, size, guided)
                options = runtime.kernel_options(jax.default_backend())
                act = jax.jit(self._functions[guided], compiler_options=options)
                compiled = act.lower(self._params, *arguments).compile()
                self._compiled[guided, size] = compiled
                jax.block_until_ready(compiled(self._params, *arguments))
        return self._clock() - start

    def run(self, requests: Sequence[Request]) -> tuple[list[Chunk | errors.VlaError], float]:
        """The chunk of every request, in the robot's units, and the seconds from the first byte to the device to the
        last one back. A row that is not finite becomes an error of that row alone."""
        guided = self.kind(requests[0])
        size = next(size for size in self.batch_sizes if size >= len(requests))
        arguments = self._batch(requests, size, guided)
        start = self._clock()
        actions = np.asarray(jax.device_get(self._compiled[guided, size](self._params, *arguments)))
        seconds = self._clock() - start
        return [_finite(chunk) for chunk in actions[: len(requests)]], seconds

    @property
    def _chunk_shape(self) -> tuple[int, int]:
        return self._policy.recipe.policy.decoder.action_horizon, self._policy.edges.normalizer.robot_action_dim

    def _act(self, params: Params, seed: UInt32[Array, ""], observation: Observation) -> Float[Array, "h r"]:
        """One row; `vmap` makes the batch."""
        one = jax.tree.map(lambda leaf: leaf[None], observation)
        edges = self._policy.edges
        chunks, _ = self._policy.act(params, jax.random.key(seed), edges.normalize(one), ())
        return edges.unnormalize(chunks, one.state)[0]

    def _batch(self, requests: Sequence[Request], size: int, guided: bool) -> tuple[Any, ...]:
        rows = [*requests, *[requests[-1]] * (size - len(requests))]
        seeds = [self._seeds.integers(2**31) if row.seed is None else row.seed for row in rows]
        observation = Observation(
            images={name: np.stack([row.images[name] for row in rows]) for name in rows[0].images},
            image_mask={name: np.array([row.image_mask[name] for row in rows]) for name in rows[0].images},
            state=np.stack([row.state for row in rows]),
            prompt=np.stack([row.prompt for row in rows]),
            prompt_mask=np.stack([row.prompt_mask for row in rows]),
        )
        arguments = (np.array(seeds, np.uint32), observation)
        if not guided:
            return arguments
        previous = [row.previous for row in rows]
        counts = [np.array([getattr(each, name) for each in previous], np.int32) for name in ("frozen", "overlap")]
        return (*arguments, np.stack([each.actions for each in previous]), *counts)

    def _blank(self) -> Request:
        edges, recipe = self._policy.edges, self._policy.recipe
        image = np.zeros((*edges.image_size, 3), np.uint8)
        cameras = recipe.policy.backbone.cameras
        length = edges.prompt_length
        return Request(
            images={name: image for name in cameras},
            image_mask={name: True for name in cameras},
            state=np.zeros(edges.normalizer.state_dim, np.float32),
            prompt=np.zeros(length, np.int32),
            prompt_mask=np.ones(length, bool),
        )


def guided_act(
    policy: TrainedPolicy, net: functional.Net[HasVelocity], options: GuidanceOptions
) -> Callable[..., Float[Array, "b h r"]]:
    """Real-time chunking as a function of (params, seeds, observation, previous actions, frozen, overlap).

    The noise of a row is that of plain sampling with the same seed; dims that the robot does not have are free.
    """
    edges, decoder = policy.edges, policy.recipe.policy.decoder
    horizon, width = decoder.action_horizon, decoder.action_dim

    def noise_of(seed: UInt32[Array, ""]) -> Float[Array, "h a"]:
        noise_key, _ = jax.random.split(jax.random.key(seed))
        return jax.random.normal(noise_key, (1, 1, horizon, width))[0, 0]

    def act(
        params: Params,
        seeds: UInt32[Array, "b"],
        observation: Observation,
        previous: Float[Array, "b h r"],
        frozen: Int[Array, "b"],
        overlap: Int[Array, "b"],
    ) -> Float[Array, "b h r"]:
        bound = net.bind(params)
        prefix = bound.prefix(edges.normalize(observation))
        unused = ((0, 0), (0, 0), (0, width - previous.shape[-1]))
        target = jnp.pad(edges.action_space.to_policy(previous, observation.state), unused)
        held = jax.vmap(lambda frozen, overlap: prefix_weights(horizon, frozen, overlap))(frozen, overlap)
        weights = jnp.pad(jnp.broadcast_to(held[..., None], previous.shape), unused)

        def field(x: Float[Array, "b h a"], time: Float[Array, ""]) -> Float[Array, "b h a"]:
            return bound.velocity(prefix, x, jnp.full(len(x), time))

        # The sampler is deterministic, so its key is of no account.
        actions, _ = guided_euler(jax.random.key(0), field, jax.vmap(noise_of)(seeds), target, weights, options)
        return edges.unnormalize(jnp.clip(actions, -1, 1) if decoder.clip_actions else actions, observation.state)

    return act


def _finite(chunk: Chunk) -> Chunk | errors.RequestError:
    if np.isfinite(chunk).all():
        return chunk
    return errors.RequestError("actions", expected="finite numbers from the policy", found="NaN or infinity")
