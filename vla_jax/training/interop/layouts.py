"""The foreign checkpoint formats that we read and write, each as one table for a given network.

    openpi     orbax checkpoints of pi0, pi0.5 and pi0-FAST          everything
    lerobot    model.safetensors of its pi0, pi0.5 and pi0-FAST      everything
    paligemma  Hugging Face safetensors                              towers, projection, words
    gemma3     Hugging Face safetensors                              towers, projection, words
    gemma      Hugging Face safetensors, Gemma 3's words too         the language model
    siglip     Hugging Face safetensors                              the vision tower
    qwen2_5_vl, qwen3_vl  Hugging Face safetensors                   everything but an action expert

All but the first two leave the rest of a policy as it starts.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from vla_jax.core import errors
from vla_jax.nets.paligemma import PaliGemmaConfig
from vla_jax.nets.qwen_vl import QwenVLConfig
from vla_jax.nets.reading import Reading
from vla_jax.nets.vla_transformer import VlaTransformerConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training.interop import qwen
from vla_jax.training.interop import towers as parts
from vla_jax.training.interop.rules import Constant, Layout, Rule, Tied, Unused, flip_sign, reflect_time
from vla_jax.training.interop.towers import FLAX, TORCH, Spelling, Towers

Backbone = VlaTransformerConfig | PaliGemmaConfig | QwenVLConfig

_TIED = "tied to the embedding"
_NO_WORDS = "its final norm feeds the words only, and this policy writes none"
_HEAD = "the pooling head, which a tower of patch tokens does without"


@dataclasses.dataclass(frozen=True)
class Format:
    """One foreign format: how its table is made, whether its files are orbax's, and which networks it has names for."""

    make: Callable[[Backbone, FlowConfig | None, str], Layout]
    orbax: bool = False
    backbones: tuple[type, ...] = (VlaTransformerConfig, PaliGemmaConfig)


def layout(name: str, backbone: Backbone, flow: FlowConfig | None = None, prefix: str = "backbone/") -> Layout:
    """The table of format `name` for a policy on `backbone` with a `flow` decoder, or for the backbone alone.

    `prefix` is where the backbone's parameters stand in the tree; the decoder's stand at the top. Raises ConfigError
    for an unknown format, or a network that the format cannot hold.
    """
    if name not in FORMATS:
        raise errors.ConfigError(f"no layout {name!r}", fix=errors.closest(name, FORMATS))
    if not isinstance(backbone, FORMATS[name].backbones):
        raise errors.ConfigError(
            f"layout {name} has no names for this network",
            expected=" or ".join(kind.__name__ for kind in FORMATS[name].backbones),
            found=type(backbone).__name__,
        )
    return FORMATS[name].make(backbone, flow, prefix)


def openpi(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """openpi's own names (its commit 15a9616)."""
    where, llm = _standard_towers("openpi", backbone, prefix), "PaliGemma/llm/"
    rules = [
        *parts.siglip(where.vision, where.vision_path, "PaliGemma/img/", FLAX),
        *parts.dense(where.projection_path, "PaliGemma/img/head", FLAX),
        Rule((where.embedding_path,), f"{llm}embedder/input_embedding", "v d -> v d"),
        *parts.openpi_gemma(where.language, where.layers_path, llm),
    ]
    unused, constants = _prefix_norm(where, f"{llm}final_norm/scale", rules)
    if isinstance(backbone, VlaTransformerConfig):
        adaptive, mixture = backbone.adaptive_norm, f"{prefix}mixture/"
        rules += parts.openpi_gemma(
            backbone.suffix_expert, f"{mixture}suffix_layers", llm, expert="_1", adaptive=adaptive
        )
        rows = parts.norm(f"{mixture}suffix_norm", f"{llm}final_norm_1", FLAX, adaptive=adaptive)
        rules += [Rule((ours,), theirs, pattern) for ours, theirs, pattern in rows]
        rules += _action_heads(backbone, flow, prefix, lambda name: name, FLAX)
    return Layout("openpi", tuple(rules), unused, constants)


def lerobot(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """LeRobot's names, and openpi's torch ones, which lack the leading `model.`.

    Those of pi0-FAST, a PaliGemma alone, are from LeRobot's commit 02e3ae7 (policies/pi0_fast, policies/pi_gemma).
    """
    where, top = _standard_towers("lerobot", backbone, prefix), "model.paligemma_with_expert."
    vlm, expert = f"{top}paligemma.model.", f"{top}gemma_expert."
    rules = [
        *parts.siglip(where.vision, where.vision_path, f"{vlm}vision_tower.vision_model.", TORCH),
        *parts.dense(where.projection_path, f"{vlm}multi_modal_projector.linear", TORCH),
        *_language_rules(where, f"{vlm}language_model."),
    ]
    unused, constants = _prefix_norm(where, f"{vlm}language_model.norm.weight", rules)
    unused += (
        Unused(rf"{_quoted(top)}paligemma\.lm_head\.weight", _TIED),
        Unused(rf"{_quoted(vlm)}vision_tower\.vision_model\.head\..*", _HEAD),
    )
    if isinstance(backbone, VlaTransformerConfig):
        adaptive, mixture = backbone.adaptive_norm, f"{prefix}mixture/"
        rules += parts.huggingface_gemma(
            backbone.suffix_expert, f"{mixture}suffix_layers", f"{expert}model.", adaptive=adaptive
        )
        rows = parts.norm(f"{mixture}suffix_norm", f"{expert}model.norm", TORCH, adaptive=adaptive)
        rules += [Rule((ours,), theirs, pattern) for ours, theirs, pattern in rows]
        rules += _action_heads(backbone, flow, prefix, lambda name: f"model.{name}", TORCH)
        unused += (Unused(rf"{_quoted(expert)}lm_head\.weight", "the action expert writes no words"),)
        constants += (Constant(f"{expert}lm_head.weight", (backbone.vocab_size, backbone.suffix_expert.width)),)
    aliases = (
        (r"^(?!model\.)", "model."),
        (r"paligemma\.(vision_tower|multi_modal_projector)\.", r"paligemma.model.\1."),
        (r"paligemma\.language_model\.model\.", "paligemma.model.language_model."),
        (r"paligemma\.language_model\.lm_head\.", "paligemma.lm_head."),
        (r"vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    )
    # The published files have the output layer and leave out the embedding that it is tied to; the loader wants both.
    tied = (Tied(f"{top}paligemma.lm_head.weight", f"{vlm}language_model.embed_tokens.weight", written=True),)
    return Layout("lerobot", tuple(rules), unused, constants, tied, aliases)


def paligemma(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """transformers' PaliGemmaForConditionalGeneration, from its first release to version 5."""
    where = _standard_towers("paligemma", backbone, prefix)
    return _vision_language(
        "paligemma", where, parts.dense(where.projection_path, "multi_modal_projector.linear", TORCH)
    )


def gemma3(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """transformers' Gemma3ForConditionalGeneration, versions 4 and 5."""
    where, theirs = _standard_towers("gemma3", backbone, prefix), "multi_modal_projector."
    projection = [
        Rule((f"{where.vision_norm_path}/scale",), f"{theirs}mm_soft_emb_norm.weight", "d -> d"),
        Rule((f"{where.projection_path}/kernel",), f"{theirs}mm_input_projection_weight", "i o -> i o"),
    ]
    return _vision_language("gemma3", where, projection)


def _vision_language(name: str, where: Towers, projection: list[Rule]) -> Layout:
    language = "language_model.model."
    rules = [
        *parts.siglip(where.vision, where.vision_path, "vision_tower.vision_model.", TORCH),
        *projection,
        *_language_rules(where, language),
    ]
    unused, constants = _prefix_norm(where, f"{language}norm.weight", rules)
    unused += (
        Unused(r"language_model\.lm_head\.weight", _TIED),
        Unused(r"vision_tower\.vision_model\.head\..*", _HEAD),
    )
    aliases = (
        (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    )
    tied = (Tied("language_model.lm_head.weight", f"{language}embed_tokens.weight"),)
    return Layout(name, tuple(rules), fresh=("*",), tied=tied, unused=unused, constants=constants, aliases=aliases)


def gemma(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """transformers' GemmaForCausalLM and Gemma3ForCausalLM, or their inner models, which lack the leading `model.`."""
    where = parts.towers(backbone, prefix)
    rules = _language_rules(where, "model.")
    unused, constants = _prefix_norm(where, "model.norm.weight", rules)
    unused += (Unused(r"lm_head\.weight", _TIED), Unused(r".*rotary_emb\.inv_freq", "computed from the positions"))
    aliases = ((r"^(?!model\.|lm_head\.)", "model."),)
    tied = (Tied("lm_head.weight", "model.embed_tokens.weight"),)
    return Layout("gemma", tuple(rules), fresh=("*",), tied=tied, unused=unused, constants=constants, aliases=aliases)


def siglip(backbone: Backbone, flow: FlowConfig | None, prefix: str) -> Layout:
    """The vision half of transformers' SiglipModel, or SiglipVisionModel."""
    where = _standard_towers("siglip", backbone, prefix)
    rules = parts.siglip(where.vision, where.vision_path, "vision_model.", TORCH)
    unused = (
        Unused(r"vision_model\.head\..*", _HEAD),
        Unused(r"text_model\..*|logit_(scale|bias)", "the text half, which is for contrastive training"),
    )
    aliases = ((r"^(?!vision_model\.|text_model\.|logit_)", "vision_model."),)
    return Layout("siglip", tuple(rules), fresh=("*",), unused=unused, aliases=aliases)


FORMATS = {
    "openpi": Format(openpi, orbax=True),
    "lerobot": Format(lerobot),
    "paligemma": Format(paligemma),
    "gemma3": Format(gemma3),
    "gemma": Format(gemma),
    "siglip": Format(siglip),
    "qwen2_5_vl": Format(qwen.qwen2_5_vl, backbones=(QwenVLConfig,)),
    "qwen3_vl": Format(qwen.qwen3_vl, backbones=(QwenVLConfig,)),
}


def _language_rules(where: Towers, theirs: str) -> list[Rule]:
    # Google's own tables are padded to a round number of rows: 257216 for 257152 words.
    embedding = Rule((where.embedding_path,), f"{theirs}embed_tokens.weight", "v d -> v d", longer="v")
    return [embedding, *parts.huggingface_gemma(where.language, where.layers_path, theirs)]


def _prefix_norm(where: Towers, theirs: str, rules: list[Rule]) -> tuple[tuple[Unused, ...], tuple[Constant, ...]]:
    """Add the rule for the norm before the words where the network has one; else say why it is left out."""
    if where.norm_path is not None:
        rules.append(Rule((f"{where.norm_path}/scale",), theirs, "d -> d"))
        return (), ()
    return (Unused(_quoted(theirs), _NO_WORDS),), (Constant(theirs, (where.language.width,)),)


def _action_heads(
    backbone: VlaTransformerConfig,
    flow: FlowConfig | None,
    prefix: str,
    named: Callable[[str], str],
    spelling: Spelling,
) -> list[Rule]:
    """State and action projections and the flow time's network, whose direction turns (see `reflect_time`)."""
    if flow is None:
        return []
    _check_pi(backbone, flow)
    width = backbone.suffix_expert.width
    periods = 4e-3 * (4.0 / 4e-3) ** np.linspace(0, 1, width // 2)  # of `nets.linear.sincos`
    dense = functools.partial(parts.dense, spelling=spelling)
    if flow.time_conditioning == "adaptive_norm":
        time, rows = "time_mlp", slice(None)
    else:
        time, rows = "action_time_mlp", slice(width, None)  # the first rows read the action token
    state = []
    if backbone.state_token == "suffix":
        # Theirs has the width of the padded actions. A robot's state fills the first entries, and zeros add nothing.
        kernel, bias = dense(f"{prefix}state_in", named("state_proj"))
        state = [dataclasses.replace(kernel, longer="i", padded_to=flow.action_dim), bias]
    return [
        *dense("action_in", named("action_in_proj")),
        *dense("time_in", named(f"{time}_in"), kernel_values=reflect_time(periods, rows)),
        *dense("time_out", named(f"{time}_out")),
        *dense("action_out", named("action_out_proj"), kernel_values=flip_sign, bias_values=flip_sign),
        *state,
    ]


def _check_pi(backbone: VlaTransformerConfig, flow: FlowConfig) -> None:
    kinds = {("suffix", "concat"): "pi0", ("text", "adaptive_norm"): "pi0.5"}
    found = (backbone.state_token, flow.time_conditioning)
    if found not in kinds or backbone.adaptive_norm != (flow.time_conditioning == "adaptive_norm"):
        raise errors.ConfigError(
            "this policy is neither pi0 nor pi0.5",
            expected="state_token 'suffix' with time_conditioning 'concat' (pi0), or 'text' with 'adaptive_norm' in "
            "backbone and decoder (pi0.5)",
            found=f"state_token {found[0]!r}, time_conditioning {found[1]!r}, adaptive_norm={backbone.adaptive_norm}",
            fix="build the backbone with nets.vla_transformer.pi0 or pi05",
        )


def _standard_towers(name: str, backbone: Backbone, prefix: str) -> Towers:
    """Raises ConfigError for what the format has no place for: our small departures, or the other family's layers."""
    where = parts.towers(backbone, prefix)
    if where.vision is None:
        raise errors.ConfigError(f"layout {name}", expected="a vision tower", found="vision=None", fix="layout gemma")
    is_pi, is_gemma3 = name in ("openpi", "lerobot"), name == "gemma3"
    wanted = {"vision.stem": "patch", "vision.mixed_tokens": None}
    found = {"vision.stem": where.vision.stem, "vision.mixed_tokens": where.vision.mixed_tokens}
    if name != "siglip":
        wanted |= dict(qk_norm=is_gemma3, post_norm=is_gemma3, pooled_norm=is_gemma3)
        found |= dict(qk_norm=where.language.qk_norm, post_norm=where.language.post_norm)
        found["pooled_norm"] = backbone.reading.pooled_norm
    if is_pi:
        wanted |= dict(camera_embedding=False, reading=Reading())
        found |= dict(camera_embedding=backbone.camera_embedding, reading=backbone.reading)
    own = [field for field in wanted if wanted[field] != found[field]]
    if own:
        raise errors.ConfigError(
            f"layout {name} has no place for {', '.join(own)}",
            expected="the published network: " + ", ".join(f"{field}={wanted[field]}" for field in own),
            found=", ".join(f"{field}={found[field]}" for field in own),
            fix="build the backbone with nets.vla_transformer.pi0 or pi05, nets.paligemma or nets.gemma3",
        )
    return where


def _quoted(name: str) -> str:
    return name.replace(".", r"\.")
