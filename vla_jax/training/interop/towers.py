"""Where the parts of a vision-language network stand in our trees, and their tables for two families of checkpoints.

A `Spelling` says what a family does to every layer of a kind: transformers is torch, one tensor per layer, kernels
`[out, in]`; big_vision and openpi are flax, layers stacked, kernels `[in, out]` with heads apart. In Gemma openpi also
fuses keys with values and the MLP's two inputs, so its layers have a table of their own.
"""

import dataclasses

from vla_jax.nets.gemma import GemmaConfig
from vla_jax.nets.paligemma import PaliGemmaConfig
from vla_jax.nets.siglip import SiglipConfig
from vla_jax.nets.vla_transformer import VlaTransformerConfig
from vla_jax.training.interop.rules import LAYER, Rule, Values

Row = tuple[str | tuple[str, ...], str, str]  # ours, theirs, pattern, of one layer


@dataclasses.dataclass(frozen=True)
class Towers:
    """Paths in our parameter tree of what all these checkpoints share: a SigLIP, a projection, a Gemma."""

    vision: SiglipConfig | None
    language: GemmaConfig
    vision_path: str
    vision_norm_path: str  # of Gemma 3's norm before the projection
    projection_path: str
    embedding_path: str
    layers_path: str
    norm_path: str | None  # the norm before the logits; a policy that writes no words has none


def towers(backbone: VlaTransformerConfig | PaliGemmaConfig, prefix: str = "") -> Towers:
    """Those of a backbone whose parameters stand below `prefix`, for example "backbone/"."""
    shared = tuple(f"{prefix}{name}" for name in ("vision", "vision_norm", "vision_out", "embedding"))
    if isinstance(backbone, PaliGemmaConfig):
        return Towers(backbone.vision, backbone.language, *shared, f"{prefix}layers", f"{prefix}norm")
    norm = f"{prefix}mixture/prefix_norm" if backbone.with_text else None
    return Towers(backbone.vision, backbone.prefix_expert, *shared, f"{prefix}mixture/prefix_layers", norm)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How a family of checkpoints writes a layer's tensors."""

    separator: str
    kernel: str
    scale: str
    dense: str
    heads_in: str
    heads_bias: str
    heads_out: str


TORCH = Spelling(".", "weight", "weight", "o i -> i o", "(h k) d -> d h k", "(h k) -> h k", "d (h k) -> h k d")
FLAX = Spelling("/", "kernel", "scale", "i o -> i o", "d h k -> d h k", "h k -> h k", "h k d -> h k d")


def siglip(config: SiglipConfig, ours: str, theirs: str, spelling: Spelling) -> list[Rule]:
    """`theirs` is the prefix of their names, with its separator."""
    s = spelling
    if s is TORCH:
        patch, patch_pattern = "embeddings.patch_embedding", "d c rows cols -> (rows cols c) d"
        positions, positions_pattern = "embeddings.position_embedding.weight", "n d -> n d"
        final, layer = "post_layernorm", f"encoder.layers.{LAYER}."
        norms, mlp = ("layer_norm1", "layer_norm2"), ("mlp.fc1", "mlp.fc2")
        heads = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    else:
        patch, patch_pattern = "embedding", "rows cols c d -> (rows cols c) d"
        positions, positions_pattern = "pos_embedding", "1 n d -> n d"
        final, layer = "Transformer/encoder_norm", "Transformer/encoderblock/"
        norms, mlp = ("LayerNorm_0", "LayerNorm_1"), ("MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1")
        heads = tuple(f"MultiHeadDotProductAttention_0/{name}" for name in ("query", "key", "value", "out"))
    grid = (("rows", config.patch_size), ("cols", config.patch_size))
    stem = Rule((f"{ours}/stem/project/kernel",), f"{theirs}{patch}{s.separator}{s.kernel}", patch_pattern, sizes=grid)
    rows = [
        ("stem/project/bias", f"{patch}{s.separator}bias", "d -> d"),
        ("positions", positions, positions_pattern),
        *_norm_rows("norm", final, s),
    ]
    layers = [
        *_norm_rows("attention_norm", norms[0], s),
        *_pair("query", heads[0], s.heads_in, s.heads_bias, s),
        *_pair("key", heads[1], s.heads_in, s.heads_bias, s),
        *_pair("value", heads[2], s.heads_in, s.heads_bias, s),
        *_pair("attention_out", heads[3], s.heads_out, "d -> d", s),
        *_norm_rows("mlp_norm", norms[1], s),
        *_dense_rows("up", mlp[0], s),
        *_dense_rows("down", mlp[1], s),
    ]
    return [stem, *_rules(rows, ours, theirs), *_rules(layers, f"{ours}/layers", f"{theirs}{layer}", config.depth)]


def huggingface_gemma(config: GemmaConfig, ours: str, theirs: str, *, adaptive: bool = False) -> list[Rule]:
    """The layers of one Gemma, of the first generation or the third; `adaptive` norms are LeRobot's for pi0.5's."""
    kernels = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    rows: list[Row] = [
        *((f"{our}/kernel", f"self_attn.{their}.weight", TORCH.heads_in) for our, their in kernels.items()),
        ("attention_out/kernel", "self_attn.o_proj.weight", TORCH.heads_out),
        *((f"{name}/kernel", f"mlp.{name}_proj.weight", TORCH.dense) for name in ("gate", "up", "down")),
        *norm("attention_norm", "input_layernorm", TORCH, adaptive=adaptive),
    ]
    before_mlp, plain = "post_attention_layernorm", {}
    if config.post_norm:
        before_mlp = "pre_feedforward_layernorm"
        plain |= {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
    if config.qk_norm:
        plain |= {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
    rows += norm("mlp_norm", before_mlp, TORCH, adaptive=adaptive)
    rows += [(f"{our}/scale", f"{their}.weight", "d -> d") for our, their in plain.items()]
    return _rules(rows, ours, f"{theirs}layers.{LAYER}.", config.depth)


def openpi_gemma(
    config: GemmaConfig, ours: str, theirs: str, *, expert: str = "", adaptive: bool = False
) -> list[Rule]:
    """The layers of one expert; `expert` is the suffix of its names, "_1" for the action expert."""
    attention = f"attn/{{}}{expert}/w"
    heads, kernels = "parts n d k -> parts d n k", ("query/kernel", "key/kernel", "value/kernel")
    if config.num_heads == config.num_kv_heads:
        rows: list[Row] = [(kernels, attention.format("qkv_einsum"), heads)]
    else:
        rows = [
            (kernels[0], attention.format("q_einsum"), "n d k -> d n k"),
            (kernels[1:], attention.format("kv_einsum"), heads),
        ]
    rows += [
        ("attention_out/kernel", attention.format("attn_vec_einsum"), "n k d -> n k d"),
        (("gate/kernel", "up/kernel"), f"mlp{expert}/gating_einsum", "parts d m -> parts d m"),
        ("down/kernel", f"mlp{expert}/linear", "m d -> m d"),
        *norm("attention_norm", f"pre_attention_norm{expert}", FLAX, adaptive=adaptive),
        *norm("mlp_norm", f"pre_ffw_norm{expert}", FLAX, adaptive=adaptive),
    ]
    return _rules(rows, ours, f"{theirs}layers/", config.depth)


def norm(ours: str, theirs: str, spelling: Spelling, *, adaptive: bool) -> list[Row]:
    """A `nets.gemma.Norm`."""
    if not adaptive:
        return [(f"{ours}/plain/scale", f"{theirs}{spelling.separator}{spelling.scale}", "d -> d")]
    dense = "dense" if spelling is TORCH else "Dense_0"
    return _dense_rows(f"{ours}/modulation", f"{theirs}{spelling.separator}{dense}", spelling)


def dense(
    ours: str,
    theirs: str,
    spelling: Spelling,
    *,
    kernel_values: Values | None = None,
    bias_values: Values | None = None,
) -> list[Rule]:
    """A linear layer with bias."""
    values = (kernel_values, bias_values)
    rows = _dense_rows(ours, theirs, spelling)
    return [Rule((row[0],), *row[1:], values=change) for row, change in zip(rows, values, strict=True)]


def _dense_rows(ours: str, theirs: str, s: Spelling) -> list[Row]:
    return _pair(ours, theirs, s.dense, "o -> o", s)


def _pair(ours: str, theirs: str, kernel: str, bias: str, s: Spelling) -> list[Row]:
    """Kernel and bias, with their patterns."""
    return [
        (f"{ours}/kernel", f"{theirs}{s.separator}{s.kernel}", kernel),
        (f"{ours}/bias", f"{theirs}{s.separator}bias", bias),
    ]


def _norm_rows(ours: str, theirs: str, s: Spelling) -> list[Row]:
    """Scale and bias."""
    return [
        (f"{ours}/scale", f"{theirs}{s.separator}{s.scale}", "d -> d"),
        (f"{ours}/bias", f"{theirs}{s.separator}bias", "d -> d"),
    ]


def _rules(rows: list[Row], ours: str, theirs: str, depth: int = 0) -> list[Rule]:
    def paths(names: str | tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{ours}/{name}" for name in ((names,) if isinstance(names, str) else names))

    return [Rule(paths(names), f"{theirs}{name}", pattern, depth=depth) for names, name, pattern in rows]
