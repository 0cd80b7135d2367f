"""Where the parts of a vision-language network stand in our trees, and their tables for two families of checkpoints.

`openpi_*` are the names of big_vision and openpi (flax; layers stacked, keys and values fused, gate and up fused),
`huggingface_*` those of transformers (torch; one tensor per layer, kernels `[out, in]`).
"""

import dataclasses

from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.paligemma import PaliGemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformerConfig
from vla_jax.training.interop.rules import LAYER, Rule, Values


@dataclasses.dataclass(frozen=True)
class Towers:
    """Paths in our parameter tree of what all these checkpoints share: a SigLIP, a projection, a Gemma."""

    vision: SiglipConfig
    language: GemmaConfig
    vision_path: str
    projection_path: str
    embedding_path: str
    layers_path: str
    norm_path: str | None  # the norm before the logits; a policy that writes no words has none


def towers(backbone: VlaTransformerConfig | PaliGemmaConfig, prefix: str = "") -> Towers:
    """Those of a backbone whose parameters stand below `prefix`, for example "backbone/"."""
    shared = (f"{prefix}vision", f"{prefix}vision_out", f"{prefix}embedding")
    if isinstance(backbone, PaliGemmaConfig):
        return Towers(backbone.vision, backbone.language, *shared, f"{prefix}layers", f"{prefix}norm")
    norm = f"{prefix}mixture/prefix_norm" if backbone.with_text else None
    return Towers(backbone.vision, backbone.prefix_expert, *shared, f"{prefix}mixture/prefix_layers", norm)


def huggingface_siglip(config: SiglipConfig, ours: str, theirs: str) -> list[Rule]:
    """`theirs` is the prefix of their names, with its dot."""
    patch = (("rows", config.patch_size), ("cols", config.patch_size))
    rules = [
        Rule(
            (f"{ours}/stem/project/kernel",),
            f"{theirs}embeddings.patch_embedding.weight",
            "d c rows cols -> (rows cols c) d",
            sizes=patch,
        ),
        Rule((f"{ours}/stem/project/bias",), f"{theirs}embeddings.patch_embedding.bias", "d -> d"),
        Rule((f"{ours}/positions",), f"{theirs}embeddings.position_embedding.weight", "n d -> n d"),
        Rule((f"{ours}/norm/scale",), f"{theirs}post_layernorm.weight", "d -> d"),
        Rule((f"{ours}/norm/bias",), f"{theirs}post_layernorm.bias", "d -> d"),
    ]
    heads = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    table = [
        ("attention_norm/scale", "layer_norm1.weight", "d -> d"),
        ("attention_norm/bias", "layer_norm1.bias", "d -> d"),
        *((f"{our}/kernel", f"self_attn.{name}.weight", "(h k) d -> d h k") for our, name in heads.items()),
        *((f"{our}/bias", f"self_attn.{name}.bias", "(h k) -> h k") for our, name in heads.items()),
        ("attention_out/kernel", "self_attn.out_proj.weight", "d (h k) -> h k d"),
        ("attention_out/bias", "self_attn.out_proj.bias", "d -> d"),
        ("mlp_norm/scale", "layer_norm2.weight", "d -> d"),
        ("mlp_norm/bias", "layer_norm2.bias", "d -> d"),
        ("up/kernel", "mlp.fc1.weight", "m d -> d m"),
        ("up/bias", "mlp.fc1.bias", "m -> m"),
        ("down/kernel", "mlp.fc2.weight", "d m -> m d"),
        ("down/bias", "mlp.fc2.bias", "d -> d"),
    ]
    return rules + _layers(table, f"{ours}/layers", f"{theirs}encoder.layers.{LAYER}.", config.depth)


def huggingface_gemma(config: GemmaConfig, ours: str, theirs: str, *, adaptive: bool = False) -> list[Rule]:
    """The layers of one Gemma; `adaptive` norms are LeRobot's names for pi0.5's."""
    table = [
        ("query/kernel", "self_attn.q_proj.weight", "(h k) d -> d h k"),
        ("key/kernel", "self_attn.k_proj.weight", "(g k) d -> d g k"),
        ("value/kernel", "self_attn.v_proj.weight", "(g k) d -> d g k"),
        ("attention_out/kernel", "self_attn.o_proj.weight", "d (h k) -> h k d"),
        ("gate/kernel", "mlp.gate_proj.weight", "m d -> d m"),
        ("up/kernel", "mlp.up_proj.weight", "m d -> d m"),
        ("down/kernel", "mlp.down_proj.weight", "d m -> m d"),
    ]
    for our, name in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        table += huggingface_norm(our, name, adaptive=adaptive)
    return _layers(table, ours, f"{theirs}layers.{LAYER}.", config.depth)


def huggingface_norm(ours: str, theirs: str, *, adaptive: bool) -> list[tuple[str, str, str]]:
    """Rows of a table for a `nets.gemma.Norm`."""
    if not adaptive:
        return [(f"{ours}/plain/scale", f"{theirs}.weight", "d -> d")]
    return [
        (f"{ours}/modulation/kernel", f"{theirs}.dense.weight", "m d -> d m"),
        (f"{ours}/modulation/bias", f"{theirs}.dense.bias", "m -> m"),
    ]


def openpi_siglip(config: SiglipConfig, ours: str, theirs: str) -> list[Rule]:
    """`theirs` is the prefix of their names, with its slash."""
    patch = (("rows", config.patch_size), ("cols", config.patch_size))
    rules = [
        Rule(
            (f"{ours}/stem/project/kernel",),
            f"{theirs}embedding/kernel",
            "rows cols c d -> (rows cols c) d",
            sizes=patch,
        ),
        Rule((f"{ours}/stem/project/bias",), f"{theirs}embedding/bias", "d -> d"),
        Rule((f"{ours}/positions",), f"{theirs}pos_embedding", "1 n d -> n d"),
        Rule((f"{ours}/norm/scale",), f"{theirs}Transformer/encoder_norm/scale", "d -> d"),
        Rule((f"{ours}/norm/bias",), f"{theirs}Transformer/encoder_norm/bias", "d -> d"),
    ]
    attention = "MultiHeadDotProductAttention_0"
    table = [
        *((f"{our}/kernel", f"{attention}/{our}/kernel", "d h k -> d h k") for our in ("query", "key", "value")),
        *((f"{our}/bias", f"{attention}/{our}/bias", "h k -> h k") for our in ("query", "key", "value")),
        ("attention_out/kernel", f"{attention}/out/kernel", "h k d -> h k d"),
        ("attention_out/bias", f"{attention}/out/bias", "d -> d"),
        ("up/kernel", "MlpBlock_0/Dense_0/kernel", "d m -> d m"),
        ("up/bias", "MlpBlock_0/Dense_0/bias", "m -> m"),
        ("down/kernel", "MlpBlock_0/Dense_1/kernel", "m d -> m d"),
        ("down/bias", "MlpBlock_0/Dense_1/bias", "d -> d"),
    ]
    for our, name in (("attention_norm", "LayerNorm_0"), ("mlp_norm", "LayerNorm_1")):
        table += [(f"{our}/{leaf}", f"{name}/{leaf}", "d -> d") for leaf in ("scale", "bias")]
    return rules + _layers(table, f"{ours}/layers", f"{theirs}Transformer/encoderblock/", config.depth)


def openpi_gemma(
    config: GemmaConfig, ours: str, theirs: str, *, expert: str = "", adaptive: bool = False
) -> list[Rule]:
    """The layers of one expert; `expert` is the suffix of its names, "_1" for the action expert."""
    attention = f"attn/{{}}{expert}/w"
    heads, kernels = "parts n d k -> parts d n k", ("query/kernel", "key/kernel", "value/kernel")
    if config.num_heads == config.num_kv_heads:
        table = [(kernels, attention.format("qkv_einsum"), heads)]
    else:
        table = [
            (kernels[:1], attention.format("q_einsum"), "n d k -> d n k"),
            (kernels[1:], attention.format("kv_einsum"), heads),
        ]
    table += [
        (("attention_out/kernel",), attention.format("attn_vec_einsum"), "n k d -> n k d"),
        (("gate/kernel", "up/kernel"), f"mlp{expert}/gating_einsum", "parts d m -> parts d m"),
        (("down/kernel",), f"mlp{expert}/linear", "m d -> m d"),
    ]
    for our, name in (("attention_norm", "pre_attention_norm"), ("mlp_norm", "pre_ffw_norm")):
        rows = openpi_norm(our, f"{name}{expert}", adaptive=adaptive)
        table += [((path,), tensor, pattern) for path, tensor, pattern in rows]
    return _layers(table, ours, f"{theirs}layers/", config.depth)


def openpi_norm(ours: str, theirs: str, *, adaptive: bool) -> list[tuple[str, str, str]]:
    """Rows of a table for a `nets.gemma.Norm`."""
    if not adaptive:
        return [(f"{ours}/plain/scale", f"{theirs}/scale", "d -> d")]
    return [
        (f"{ours}/modulation/kernel", f"{theirs}/Dense_0/kernel", "d m -> d m"),
        (f"{ours}/modulation/bias", f"{theirs}/Dense_0/bias", "m -> m"),
    ]


def dense(
    ours: str, theirs: str, *, torch: bool, kernel_values: Values | None = None, bias_values: Values | None = None
) -> list[Rule]:
    """A linear layer with bias."""
    separator, kernel, pattern = (".", "weight", "o i -> i o") if torch else ("/", "kernel", "i o -> i o")
    return [
        Rule((f"{ours}/kernel",), f"{theirs}{separator}{kernel}", pattern, values=kernel_values),
        Rule((f"{ours}/bias",), f"{theirs}{separator}bias", "o -> o", values=bias_values),
    ]


def _layers(table: list[tuple], ours: str, theirs: str, depth: int) -> list[Rule]:
    return [
        Rule(
            tuple(f"{ours}/{path}" for path in ((paths,) if isinstance(paths, str) else paths)),
            f"{theirs}{name}",
            pattern,
            depth=depth,
        )
        for paths, name, pattern in table
    ]
