"""A mixture of transformers: experts with their own weights that attend together, layer by layer (arXiv 2411.04996).

    expert 0   [ images, prompt, (state) ]        sees itself
    expert 1                 [ (state) ]          sees the prefix and itself
    expert 1                           [ suffix ] sees all of the above and itself (causal: earlier suffix only)

Nothing sees to its right, so the keys and values of the first two rows are exact whatever the suffix is: they are
computed once per observation and shared by all flow steps, tokens and samples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from vla_jax.core import errors
from vla_jax.nets.attention import Implementation, Segment, attend, block_mask
from vla_jax.nets.gemma import GemmaBlock, GemmaConfig, Norm
from vla_jax.nets.linear import RMSNorm, rms_standardize
from vla_jax.nets.stack import Remat, scan_layers, stack


class Stream(NamedTuple):
    """The tokens of one expert in one pass."""

    tokens: Float[Array, "b n d"]
    positions: Int[Array, "b n *axes"]  # three axes for an expert with multimodal rotary positions
    condition: Float[Array, "b d"] | None = None
    added: Float[Array, "k b n d"] | None = None  # to the tokens behind each of the first k layers (DeepStack)


class Cache(struct.PyTreeNode):
    """What the suffix needs to know of an observation."""

    keys: Float[Array, "layers b m g d"]
    values: Float[Array, "layers b m g d"]
    mask: Bool[Array, "b m"]
    length: Int[Array, "b"]  # the position of the first suffix token: the number of real ones, where each takes one
    features: Float[Array, "b f"]
    last: Float[Array, "b d"] | None = None  # what the last real token of the prefix came out as, for models with text

    def segment(self, num_queries: int) -> Segment:
        """Keys, values and mask as that many queries see them, all layers stacked."""
        # Windows are for networks whose real tokens take one position each.
        positions = jnp.cumsum(self.mask, axis=1) - 1
        return Segment(self.keys, self.values, jnp.repeat(self.mask[:, None], num_queries, axis=1), positions)


class Outputs(NamedTuple):
    """One pass: entries of `tokens` and `last_inputs` are those of the experts that ran, in their order."""

    tokens: tuple[Float[Array, "b n d"], ...]  # after the last layer, before the final norm
    last_inputs: tuple[Float[Array, "b n d"], ...]  # what the last layer read
    keys: Float[Array, "layers b n g d"]
    values: Float[Array, "layers b n g d"]


class Mixture(nnx.Module):
    """Both experts. `unroll`, `remat` and `attention` say how the layers run, not what they compute."""

    def __init__(
        self,
        prefix_expert: GemmaConfig,
        suffix_expert: GemmaConfig,
        rngs: nnx.Rngs,
        *,
        adaptive_norm: bool = False,
        with_text: bool = False,  # whether the prefix expert has its final norm, which only its words need
        unroll: bool = False,
        remat: Remat = False,
        attention: Implementation = "fold",
    ):
        _require_joint_attention(prefix_expert, suffix_expert)
        self.unroll, self.remat, self.attention = unroll, remat, attention
        depth = prefix_expert.depth
        self.prefix_layers = stack(lambda rngs: GemmaBlock(prefix_expert, rngs), depth, rngs)
        self.suffix_layers = stack(
            lambda rngs: GemmaBlock(suffix_expert, rngs, adaptive_norm=adaptive_norm), depth, rngs
        )
        self.suffix_norm = Norm(suffix_expert.width, rngs, adaptive=adaptive_norm)
        self.prefix_norm = RMSNorm(prefix_expert.width, axes=("embed",)) if with_text else None

    def prefix(
        self,
        tokens: Float[Array, "b n d"],
        mask: Bool[Array, "b n"],
        state: Float[Array, "b 1 e"] | None = None,
        *,
        positions: Int[Array, "b n *axes"] | None = None,
        added: Float[Array, "k b n d"] | None = None,
        block: Int[np.ndarray, "n"] | None = None,
    ) -> Cache:
        """Run the prefix, and the state token where it belongs to the suffix's expert (pi0).

        `positions` are counted over the real tokens where none are given. Tokens see those of their own and of
        earlier blocks, of which there is one where none are given. The state sees them all.
        """
        if positions is None:
            positions = jnp.cumsum(mask, axis=1) - 1
        if block is None:
            block = np.zeros(mask.shape[1], np.int32)
        streams, is_real, length = [Stream(tokens, positions, added=added), None], mask, next_position(positions, mask)
        if state is not None:
            streams[1] = Stream(state, length[:, None])
            is_real = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)
            length = length + 1
            block = np.append(block, block[-1] + 1)
        outputs = self.forward(streams, block_mask(jnp.broadcast_to(block[None], is_real.shape), is_real))
        return make_cache(outputs, mask, is_real, length, self.prefix_norm)

    def suffix(
        self,
        cache: Cache,
        tokens: Float[Array, "b n e"],
        condition: Float[Array, "b e"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n e"]:
        """Decode suffix tokens against a cached prefix."""
        batch, n, _ = tokens.shape
        positions = cache.length[:, None] + jnp.arange(n)[None]
        block = jnp.arange(n) if causal else jnp.zeros(n, jnp.int32)
        seen = block_mask(jnp.broadcast_to(block, (batch, n)), jnp.ones((batch, n), bool))
        outputs = self.forward([None, Stream(tokens, positions, condition)], seen, cache)
        return self.suffix_norm(outputs.tokens[0], condition)[0]

    def forward(
        self, streams: Sequence[Stream | None], seen: Bool[Array, "b n n"], cache: Cache | None = None
    ) -> Outputs:
        """All layers over the tokens of both experts at once: `seen` between them, the whole cache visible."""
        experts = (self.prefix_layers, self.suffix_layers)
        stacks, given = zip(*[(e, s) for e, s in zip(experts, streams, strict=True) if s is not None], strict=True)
        cached = [] if cache is None else [cache.segment(seen.shape[1])]
        runs = dict(unroll=self.unroll, remat=self.remat, attention=self.attention)
        return run_layers(stacks, given, seen, cached, **runs)


def run_layers(
    stacks: Sequence[GemmaBlock],
    streams: Sequence[Stream],
    seen: Bool[Array, "b n n"],
    cached: Sequence[Segment] = (),
    *,
    unroll: bool = False,
    remat: Remat = False,
    attention: Implementation = "fold",
) -> Outputs:
    """Every layer of one stack per stream; the streams attend together as `seen` says, and to the `cached` segments.

    Keys and values of a cached segment have a leading axis `layers`. Local layers see a window of all that.
    """
    local, depth = stacks[0].local, jax.tree.leaves(nnx.state(stacks[0]))[0].shape[0]
    ends = np.cumsum([stream.tokens.shape[1] for stream in streams])
    positions = None if local is None else jnp.concatenate([stream.positions for stream in streams], axis=1)

    rotations = [block.rotations(stream.positions) for block, stream in zip(stacks, streams, strict=True)]

    def step(carry, blocks, x):
        (tokens, _), (layer, layer_cache) = carry, x
        runs = list(zip(blocks, tokens, streams, strict=True))
        projected = [
            block.project(x, turns, layer, stream.condition)
            for (block, x, stream), turns in zip(runs, rotations, strict=True)
        ]
        by_kind = list(zip(*projected, strict=True))
        queries, keys, values = (jnp.concatenate(parts, axis=1) for parts in by_kind[:3])
        segments = [part._replace(keys=k, values=v) for (k, v), part in zip(layer_cache, cached, strict=True)]
        segments.append(Segment(keys, values, seen, positions))
        if local is not None:
            segments = [s._replace(mask=s.mask & local.sees(layer, positions, s.positions)) for s in segments]
        attended = attend(queries, segments, attention)
        out = tuple(
            _add_features(block.finish(x, part, gate, stream.condition), stream.added, layer)
            for (block, x, stream), part, gate in zip(
                runs, jnp.split(attended, ends[:-1], axis=1), by_kind[3], strict=True
            )
        )
        return (out, tokens), (keys, values)

    tokens = tuple(stream.tokens for stream in streams)
    layer_caches = [segment[:2] for segment in cached]
    (out, inputs), (keys, values) = scan_layers(
        step, (tokens, tokens), stacks, (jnp.arange(depth), layer_caches), unroll=unroll, remat=remat
    )
    return Outputs(out, inputs, keys, values)


def make_cache(
    outputs: Outputs,
    mask: Bool[Array, "b n"],
    is_real: Bool[Array, "b m"],
    length: Int[Array, "b"],
    norm: Callable[[Array], Array] | None,
) -> Cache:
    """What a pass over the prefix leaves. `mask` is that of the first expert's tokens, `is_real` of all that are
    cached; `norm` stands between the last layer and the words, where there are any."""
    # The suffix reads keys and values only, so nothing trains the last layer's output; its input is trained.
    pooled = masked_mean(outputs.last_inputs[0].astype(jnp.float32), mask)
    last = None if norm is None else norm(last_real(outputs.tokens[0], mask))
    return Cache(outputs.keys, outputs.values, is_real, length, rms_standardize(pooled), last)


def next_position(positions: Int[Array, "b n *axes"], mask: Bool[Array, "b n"]) -> Int[Array, "b"]:
    """The first one behind all real tokens, on every axis."""
    largest = positions.max(-1) if positions.ndim == 3 else positions
    return jnp.max(jnp.where(mask, largest, -1), axis=1) + 1


def masked_mean(x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    weight = mask[..., None].astype(x.dtype)
    return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def last_real(x: Float[Array, "b n d"], mask: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """The entry of each row at its last True; the first one where there is none."""
    index = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


def _add_features(
    x: Float[Array, "b n d"], added: Float[Array, "k b n d"] | None, layer: Int[Array, ""]
) -> Float[Array, "b n d"]:
    if added is None:
        return x
    k = added.shape[0]
    return x + jnp.where(layer < k, added[jnp.minimum(layer, k - 1)], 0)


def _require_joint_attention(prefix: GemmaConfig, suffix: GemmaConfig) -> None:
    for field in ("depth", "num_heads", "num_kv_heads", "head_dim", "rotary", "local"):
        if getattr(prefix, field) != getattr(suffix, field):
            raise errors.ConfigError(
                f"experts of a mixture attend together, so {field} has to agree",
                expected=f"{field}={getattr(prefix, field)}, as the prefix expert",
                found=f"{field}={getattr(suffix, field)} in the suffix expert",
            )
