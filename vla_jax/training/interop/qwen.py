"""The tables of transformers' Qwen2_5_VLForConditionalGeneration and Qwen3VLForConditionalGeneration.

Their RMS norms multiply by a weight that starts at 1 where ours have `1 + scale`; queries, keys and values of the
vision tower are one tensor.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from vla_jax.core import errors
from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.qwen_vision import TIME, QwenVisionConfig
from vla_jax.nets.qwen_vl import QwenVLConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.interop.rules import LAYER, Layout, Rule, Tied, Unused

Row = tuple[str | tuple[str, ...], str, str]  # ours, theirs, pattern, of one layer


def qwen2_5_vl(backbone: QwenVLConfig, flow: FlowConfig | None, prefix: str) -> Layout:
    """In the spelling of the published files; transformers' own modules say `model.visual`, `model.language_model`."""
    _require(backbone, "qwen2.5")
    aliases = (
        (r"^model\.visual\.", "visual."),
        (r"^model\.language_model\.", "model."),
    )
    return _layout("qwen2_5_vl", backbone, prefix, vision="visual.", language="model.", aliases=aliases)


def qwen3_vl(backbone: QwenVLConfig, flow: FlowConfig | None, prefix: str) -> Layout:
    _require(backbone, "qwen3")
    return _layout("qwen3_vl", backbone, prefix, vision="model.visual.", language="model.language_model.")


def _layout(
    name: str,
    backbone: QwenVLConfig,
    prefix: str,
    *,
    vision: str,
    language: str,
    aliases: tuple[tuple[str, str], ...] = (),
) -> Layout:
    has_expert = backbone.action_expert is not None
    layers, norm = ("mixture/prefix_layers", "mixture/prefix_norm") if has_expert else ("layers", "norm")
    embedding = f"{language}embed_tokens.weight"
    rules = [
        *_vision(backbone.vision, f"{prefix}vision/", vision),
        Rule((f"{prefix}embedding",), embedding, "v d -> v d"),
        *_language(backbone.language, f"{prefix}{layers}/", f"{language}layers.{LAYER}."),
        *_norm(f"{prefix}{norm}", f"{language}norm"),
    ]
    unused, tied = (), ()
    if backbone.tied_words:
        unused = (Unused(r"lm_head\.weight", "tied to the embedding"),)
        tied = (Tied("lm_head.weight", embedding),)
    else:
        rules.append(Rule((f"{prefix}words_out/kernel",), "lm_head.weight", "v d -> d v"))
    return Layout(name, tuple(rules), fresh=("*",), unused=unused, tied=tied, aliases=aliases)


def _language(config: GemmaConfig, ours: str, theirs: str) -> list[Rule]:
    heads = {"query": "(h k)", "key": "(g k)", "value": "(g k)"}
    rows: list[Row] = [
        *(
            (f"{our}/kernel", f"self_attn.{our[0]}_proj.weight", f"{axes} d -> d {axes[1]} k")
            for our, axes in heads.items()
        ),
        ("attention_out/kernel", "self_attn.o_proj.weight", "d (h k) -> h k d"),
        *_dense(("gate", "mlp.gate_proj"), ("up", "mlp.up_proj"), ("down", "mlp.down_proj"), bias=False),
    ]
    if config.qkv_bias:
        rows += [
            (f"{our}/bias", f"self_attn.{our[0]}_proj.bias", f"{axes} -> {axes[1]} k") for our, axes in heads.items()
        ]
    norms = {"attention_norm/plain": "input_layernorm", "mlp_norm/plain": "post_attention_layernorm"}
    if config.qk_norm:
        norms |= {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
    return _stacked(rows, ours, theirs, config.depth) + [
        rule for our, their in norms.items() for rule in _norm(ours + our, theirs + their, config.depth)
    ]


def _vision(config: QwenVisionConfig, ours: str, theirs: str) -> list[Rule]:
    is_new = config.generation == "qwen3"
    patch = (("t", TIME), ("rows", config.patch_size), ("cols", config.patch_size))
    kernel = Rule(
        (f"{ours}patch/kernel",),
        f"{theirs}patch_embed.proj.weight",
        "d c t rows cols -> (t rows cols c) d",
        sizes=patch,
    )
    qkv = ("query", "key", "value")
    rows: list[Row] = [
        (tuple(f"{our}/kernel" for our in qkv), "attn.qkv.weight", "(parts h k) d -> parts d h k"),
        (tuple(f"{our}/bias" for our in qkv), "attn.qkv.bias", "(parts h k) -> parts h k"),
        ("attention_out/kernel", "attn.proj.weight", "d (h k) -> h k d"),
        ("attention_out/bias", "attn.proj.bias", "d -> d"),
    ]
    names = ("mlp.linear_fc1", "mlp.linear_fc2") if is_new else ("mlp.up_proj", "mlp.down_proj")
    rows += _dense(*zip(("up", "down"), names, strict=True))
    rows += [] if is_new else _dense(("gate", "mlp.gate_proj"))
    block = f"{theirs}blocks.{LAYER}."
    rules = [kernel, *_stacked(rows, f"{ours}layers/", block, config.depth)]
    norm = _layer_norm if is_new else _norm
    for our, their in (("attention_norm", "norm1"), ("mlp_norm", "norm2")):
        rules += norm(f"{ours}layers/{our}", block + their, config.depth)
    merger = ("linear_fc1", "linear_fc2", "norm") if is_new else ("mlp.0", "mlp.2", "ln_q")
    rules += _stacked(_dense(("up", merger[0]), ("down", merger[1])), f"{ours}merger/", f"{theirs}merger.", 0)
    rules += norm(f"{ours}merger/norm", f"{theirs}merger.{merger[2]}", 0)
    if is_new:
        rules.append(Rule((f"{ours}patch/bias",), f"{theirs}patch_embed.proj.bias", "d -> d"))
    if config.position_grid:
        rules.append(Rule((f"{ours}positions",), f"{theirs}pos_embed.weight", "n d -> n d"))
    if config.deepstack_layers:
        place, number = f"{theirs}deepstack_merger_list.{LAYER}.", len(config.deepstack_layers)
        rules += _stacked(_dense(("up", merger[0]), ("down", merger[1])), f"{ours}deepstack/", place, number)
        rules += norm(f"{ours}deepstack/norm", place + merger[2], number)
    return rules


def _dense(*names: tuple[str, str], bias: bool = True) -> list[Row]:
    rows: list[Row] = [(f"{our}/kernel", f"{their}.weight", "o i -> i o") for our, their in names]
    return rows + [(f"{our}/bias", f"{their}.bias", "o -> o") for our, their in names if bias]


def _stacked(rows: list[Row], ours: str, theirs: str, depth: int) -> list[Rule]:
    def paths(names: str | tuple[str, ...]) -> tuple[str, ...]:
        return tuple(ours + name for name in ((names,) if isinstance(names, str) else names))

    return [Rule(paths(names), theirs + their, pattern, depth=depth) for names, their, pattern in rows]


def _norm(ours: str, theirs: str, depth: int = 0) -> list[Rule]:
    """An RMS norm."""
    return [Rule((f"{ours}/scale",), f"{theirs}.weight", "d -> d", depth, values=_less_one, undo=_plus_one)]


def _layer_norm(ours: str, theirs: str, depth: int = 0) -> list[Rule]:
    return [
        Rule((f"{ours}/scale",), f"{theirs}.weight", "d -> d", depth),
        Rule((f"{ours}/bias",), f"{theirs}.bias", "d -> d", depth),
    ]


def _less_one(weight: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    return weight.astype(np.float32) - 1


def _plus_one(scale: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    return scale.astype(np.float32) + 1


def _require(backbone: QwenVLConfig, generation: Literal["qwen2.5", "qwen3"]) -> None:
    found = backbone.vision.generation
    if found != generation:
        raise errors.ConfigError(
            f"a layout for {generation}", expected=f"vision.generation={generation!r}", found=repr(found)
        )
