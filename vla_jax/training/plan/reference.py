"""Transformers whose utilization on pods is published: what the roofline is held against.

Llama's shapes (arXiv 2307.09288, 2407.21783) with the attention kernel and the recomputation of the published runs.
Source of the numbers: MaxText's "Optimized models tiering" page (maxtext.readthedocs.io, reference/models/tiering);
of the settings: its repository, benchmarks/maxtext_trillium_model_configs.py and MaxText/configs/v5p/llama2_70b.sh.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vla_jax.core import errors, functional, placement
from vla_jax.core.types import Params
from vla_jax.nets.attention import rotate
from vla_jax.nets.linear import Dense, HeadsIn, HeadsOut, RMSNorm
from vla_jax.nets.stack import stack
from vla_jax.training.plan.chips import parse_topology
from vla_jax.training.plan.program import Program

_LOSS_CHUNK = 1024  # positions whose logits exist at a time
_BLOCK = 1024  # of the attention kernel; the published 2048 need a flag for more of the chip's own memory


@dataclasses.dataclass(frozen=True)
class Published:
    """One published run. `saved` products are kept for the gradient, on the host where `offload`."""

    name: str
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    sequence: int
    per_chip_batch: int
    topology: str
    utilization: float
    tokens_per_second: float  # and chip
    saved: tuple[str, ...]
    offload: bool

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


_QKV_OUT = ("query", "key", "value", "attention_out")
PUBLISHED = {
    run.name: run
    for run in (
        Published(
            "llama3.1-8b", 4096, 32, 14336, 32, 8, 128256, 8192, 4, "v6e:16x16", 0.4546, 7207, _QKV_OUT, True
        ),
        Published(
            "llama2-70b", 8192, 80, 28672, 64, 8, 32000, 4096, 4, "v5p:8x8x8", 0.654, 692, (*_QKV_OUT, "mlp_out"), False
        ),
        Published(
            "llama3.1-70b", 8192, 80, 28672, 64, 8, 128256, 8192, 4, "v6e:16x16", 0.5033, 960, _QKV_OUT[:3], True
        ),
    )
}  # fmt: skip


class TokensBatch(struct.PyTreeNode):
    tokens: Int[Array, "b l"]


class LanguageState(struct.PyTreeNode):
    params: Params
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Language:
    """Next-token prediction, as a `Learner` that only updates."""

    run: Published
    mesh: Mesh

    def constructor(self, rngs: nnx.Rngs) -> "Decoder":
        return Decoder(self.run, self.mesh, rngs)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-5))

    def init(self, key: Array, example_batch: TokensBatch) -> LanguageState:
        params = functional.init(self.constructor, key)[1]
        return LanguageState(params, self.optimizer.init(params))

    def loss(self, params: Params, key: Array, batch: TokensBatch) -> tuple[Float[Array, ""], dict]:
        loss = functional.describe(self.constructor)[0].bind(params).loss(batch.tokens)
        return loss, {"language/loss": loss}

    def update(self, state: LanguageState, key: Array, batch: TokensBatch) -> tuple[LanguageState, dict]:
        (_, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state.params, key, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        return LanguageState(optax.apply_updates(state.params, updates), opt_state), metrics

    def actor(self, state: LanguageState) -> Params:
        return state.params


class Decoder(nnx.Module):
    def __init__(self, run: Published, mesh: Mesh, rngs: nnx.Rngs):
        self.run, self.mesh = run, mesh
        shape = (run.vocab_size, run.width)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape) * 0.02, logical_axes=("vocab", "embed"))
        self.layers = stack(lambda rngs: Layer(run, rngs), run.depth, rngs)
        self.norm = RMSNorm(run.width, axes=("embed",))
        self.head = Dense(run.width, run.vocab_size, rngs, axes=("embed", "vocab"), use_bias=False)

    def loss(self, tokens: Int[Array, "b l"]) -> Float[Array, ""]:
        x = self.embedding[...][tokens].astype(jnp.bfloat16)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        attention = functools.partial(flash, mesh=self.mesh)
        graph, states = nnx.split(self.layers)

        def body(x, state):
            return nnx.merge(graph, state)(placement.over_batch(x), positions, attention), None

        x, _ = jax.lax.scan(jax.checkpoint(body, prevent_cse=False, policy=_policy(self.run)), x, states)
        targets = jnp.roll(tokens, -1, axis=1)
        by_chunk = [
            jnp.moveaxis(leaf.reshape(len(tokens), -1, min(_LOSS_CHUNK, tokens.shape[1]), *leaf.shape[2:]), 1, 0)
            for leaf in (self.norm(x), targets)
        ]
        kernel = self.head.kernel[...].astype(jnp.bfloat16)

        @jax.checkpoint
        def chunk(total, rows):
            hidden, wanted = placement.over_batch(rows)
            logits = jnp.einsum("bnd,dv->bnv", hidden, kernel, preferred_element_type=jnp.float32)
            return total + optax.softmax_cross_entropy_with_integer_labels(logits, wanted).sum(), None

        return jax.lax.scan(chunk, jnp.zeros(()), tuple(by_chunk))[0] / tokens.size


class Layer(nnx.Module):
    def __init__(self, run: Published, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(run.width, axes=("embed",))
        self.query = HeadsIn(run.width, run.num_heads, run.head_dim, rngs)
        self.key = HeadsIn(run.width, run.num_kv_heads, run.head_dim, rngs)
        self.value = HeadsIn(run.width, run.num_kv_heads, run.head_dim, rngs)
        self.attention_out = HeadsOut(run.num_heads, run.head_dim, run.width, rngs)
        self.mlp_norm = RMSNorm(run.width, axes=("embed",))
        self.gate = Dense(run.width, run.mlp_dim, rngs, axes=("embed", "mlp"), use_bias=False)
        self.up = Dense(run.width, run.mlp_dim, rngs, axes=("embed", "mlp"), use_bias=False)
        self.down = Dense(run.mlp_dim, run.width, rngs, axes=("mlp", "embed"), use_bias=False)

    def __call__(self, x: Float[Array, "b n d"], positions: Int[Array, "b n"], attention: Any) -> Float[Array, "b n d"]:
        y = self.attention_norm(x)
        query, key = checkpoint_name(self.query(y), "query"), checkpoint_name(self.key(y), "key")
        value = checkpoint_name(self.value(y), "value")
        attended = attention(rotate(query, positions), rotate(key, positions), value)
        x = x + checkpoint_name(self.attention_out(attended), "attention_out")
        y = self.mlp_norm(x)
        return x + checkpoint_name(self.down(jax.nn.silu(self.gate(y)) * self.up(y)), "mlp_out")


def flash(
    query: Float[Array, "b n h k"], key: Float[Array, "b n g k"], value: Float[Array, "b n g k"], mesh: Mesh
) -> Float[Array, "b n h k"]:
    """Causal attention by the splash kernel of JAX on a TPU, each device on its own examples; elsewhere by XLA."""
    if mesh.devices.flat[0].platform != "tpu":
        return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="xla")
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length = query.shape[2], query.shape[1]
    block = min(length, _BLOCK)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)
    spec = PartitionSpec(placement.BATCH_AXES)

    def local(q, k, v):
        groups = q.shape[2] // k.shape[2]
        q, k, v = (jnp.moveaxis(each, 1, 2) for each in (q * q.shape[-1] ** -0.5, k, v))
        k, v = (jnp.repeat(each, groups, axis=1) for each in (k, v))
        return jnp.moveaxis(jax.vmap(kernel)(q, k, v), 1, 2)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return mapped(query, key, value)


def against_published(name: str, batch_size: int, seconds: float, topology: str) -> dict[str, float]:
    """Predicted and published tokens per second and chip, and the relative error of the first.

    Tokens per second are what was measured; utilization depends on how attention's operations are counted.
    """
    run, chips = PUBLISHED[name], parse_topology(topology).num_chips
    predicted = batch_size * run.sequence / seconds / chips
    return {
        "predicted_tokens_per_second": predicted,
        "published_tokens_per_second": run.tokens_per_second,
        "published_utilization": run.utilization,
        "error": predicted / run.tokens_per_second - 1,
    }


def program(name: str, batch_size: int, mesh: Mesh) -> Program:
    """Raises ConfigError for a name that is not in `PUBLISHED`."""
    if name not in PUBLISHED:
        raise errors.ConfigError(f"no reference transformer {name!r}", fix=errors.closest(name, PUBLISHED))
    run = PUBLISHED[name]
    learner = Language(run, mesh)
    return Program(
        name=name,
        learner=learner,
        batch=TokensBatch(jax.ShapeDtypeStruct((batch_size, run.sequence), jnp.int32)),
        logical_axes=functional.logical_axes(learner.constructor),
        num_train_steps=1,
        kernel_share=(1 + _BLOCK / run.sequence) / 2,  # blocks above the diagonal are skipped
        kernel_width=run.head_dim,
    )


def _policy(run: Published) -> Any:
    if run.offload:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(run.saved),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*run.saved)
