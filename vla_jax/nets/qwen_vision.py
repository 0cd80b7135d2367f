"""The vision towers of Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631): a picture to language tokens.

    patches -- dense (+ learned positions) -- blocks, positions by rotation -- 2x2 neighbours merged --> tokens
                                                 '-- of some layers -- merged --> added behind the first language layers

Qwen2.5-VL's attention stays inside windows but for a few layers; Qwen3-VL's sees the whole picture. Image sizes are
static, so the order of the patches, windows and positions are constants of the compiled program.

    order of 4x8 patches in windows of 4x4         0  1  4  5 | 16 17 20 21       merged neighbours stand together,
                                                   2  3  6  7 | 18 19 22 23       and so do the patches of a window
                                                   8  9 12 13 | 24 25 28 29
                                                  10 11 14 15 | 26 27 30 31
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from vla_jax.core import errors
from vla_jax.nets.attention import Implementation, Rotation, Segment, attend, turn
from vla_jax.nets.linear import Dense, HeadsIn, HeadsOut, LayerNorm, RMSNorm
from vla_jax.nets.reading import Picture
from vla_jax.nets.siglip import join_neighbours
from vla_jax.nets.stack import Remat, scan_layers, stack

MERGE = 2  # neighbours a side that become one token
TIME = 2  # frames of a video in one patch; a picture stands for two equal ones
_WAVELENGTH = 1e4
# Of pixels in [0, 1]: CLIP's statistics for Qwen2.5-VL.
_MEAN = {"qwen2.5": (0.48145466, 0.4578275, 0.40821073), "qwen3": (0.5, 0.5, 0.5)}
_STD = {"qwen2.5": (0.26862954, 0.26130258, 0.27577711), "qwen3": (0.5, 0.5, 0.5)}


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """`generation` chooses norms (RMS or layer norm), MLP (SwiGLU or GELU) and pixel statistics."""

    generation: Literal["qwen2.5", "qwen3"]
    image_size: tuple[int, int]  # height and width in pixels
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int  # pixels; one token per square of 2x2 patches
    out_width: int  # of the language model
    window_size: int = 0  # pixels a side that attention stays in; 0: the whole picture
    full_layers: tuple[int, ...] = ()  # whose attention sees the whole picture all the same
    position_grid: int = 0  # entries a side of the learned positions, interpolated to the picture's grid; 0: none
    deepstack_layers: tuple[int, ...] = ()  # whose outputs are added to the language model's first layers, in order

    def __post_init__(self):
        if self.generation not in _MEAN:
            raise errors.ConfigError(
                "QwenVisionConfig.generation", expected=" or ".join(_MEAN), found=repr(self.generation)
            )
        unit = MERGE * self.patch_size
        if any(side < unit or side % unit for side in self.image_size) or self.window_size % unit:
            raise errors.ConfigError(
                "QwenVisionConfig",
                expected=f"sides and windows of a multiple of {unit} pixels, 2 patches",
                found=f"image_size={self.image_size}, window_size={self.window_size}",
            )
        if self.width % self.num_heads or self.width // self.num_heads % 4:
            raise errors.ConfigError(
                "QwenVisionConfig",
                expected="heads of a multiple of 4 dims, which rows and columns turn in halves",
                found=f"width={self.width}, num_heads={self.num_heads}",
            )
        for layers in (self.full_layers, self.deepstack_layers):
            if len(set(layers)) < len(layers) or any(not 0 <= layer < self.depth for layer in layers):
                raise errors.ConfigError(
                    "QwenVisionConfig", expected=f"distinct layers below depth={self.depth}", found=layers
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.grid[0] // MERGE, self.grid[1] // MERGE)

    @property
    def num_tokens(self) -> int:
        """Per image."""
        return self.token_grid[0] * self.token_grid[1]


QWEN2_5_VISION = QwenVisionConfig(
    generation="qwen2.5",
    image_size=(224, 224),
    width=1280,
    depth=32,
    mlp_dim=3420,
    num_heads=16,
    patch_size=14,
    out_width=2048,  # 3584 in the 7B model
    window_size=112,
    full_layers=(7, 15, 23, 31),
)
QWEN3_VISION = QwenVisionConfig(
    generation="qwen3",
    image_size=(224, 224),
    width=1024,
    depth=24,
    mlp_dim=4096,
    num_heads=16,
    patch_size=16,
    out_width=2048,  # 2560 in the 4B model
    position_grid=48,
    deepstack_layers=(5, 11, 17),
)


class QwenVision(nnx.Module):
    """Images to tokens. `unroll`, `remat` and `attention` say how the layers run, not what they compute."""

    def __init__(
        self,
        config: QwenVisionConfig,
        rngs: nnx.Rngs,
        *,
        unroll: bool = False,
        remat: Remat = False,
        attention: Implementation = "fold",
    ):
        c = config
        self.config, self.unroll, self.remat, self.attention = c, unroll, remat, attention
        is_new = c.generation == "qwen3"
        self.patch = Dense(TIME * c.patch_size**2 * 3, c.width, rngs, axes=(None, "embed"), use_bias=is_new)
        if c.position_grid:
            table = 0.02 * jax.random.normal(rngs.params(), (c.position_grid**2, c.width))
            self.positions = nnx.Param(table, logical_axes=(None, "embed"))
        self.layers = stack(lambda rngs: VisionBlock(c, rngs), c.depth, rngs)
        self.merger = Merger(c, rngs, joined_norm=False)
        if c.deepstack_layers:
            self.deepstack = stack(lambda rngs: Merger(c, rngs, joined_norm=True), len(c.deepstack_layers), rngs)

    def __call__(self, images: UInt8[Array, "b height width 3"], dtype: jnp.dtype) -> Picture:
        c, places = self.config, arrange(self.config)
        mean, std = (jnp.asarray(of[c.generation])[None, None, None] for of in (_MEAN, _STD))
        pixels = ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
        patches = join_neighbours(pixels, c.patch_size).reshape(images.shape[0], c.grid[0] * c.grid[1], -1)
        x = self._embed(patches[:, places.patch])
        if c.position_grid:
            near, weight = interpolation(c, places)
            x = x + (self.positions[...][near] * weight[..., None]).sum(1).astype(dtype)[None]
        x, tapped = self._run_layers(x, places)
        tokens = self.merger(x)[:, places.token]
        if not c.deepstack_layers:
            return Picture(tokens)

        def merge(carry, mergers, x):
            return carry, mergers[0](x)[:, places.token]

        stacked = jnp.moveaxis(tapped, 1, 0)
        return Picture(tokens, scan_layers(merge, None, [self.deepstack], stacked, unroll=self.unroll)[1])

    def _embed(self, patches: Float[Array, "b n p"]) -> Float[Array, "b n d"]:
        """One frame read through the sum of the kernel's slices in time, as if it came twice."""
        kernel = self.patch.kernel[...].astype(patches.dtype)
        x = patches @ kernel.reshape(TIME, patches.shape[-1], -1).sum(0)
        return x if self.patch.bias is None else x + self.patch.bias[...].astype(x.dtype)[None, None]

    def _run_layers(self, x: Float[Array, "b n d"], places: "Places"):
        """Outputs of the last layer and, `[b k n d]`, of the layers that DeepStack taps."""
        c, batch = self.config, x.shape[0]
        rotation = Rotation.by(jnp.asarray(places.angles)[None])
        sees_all = jnp.broadcast_to(jnp.asarray(places.is_real), (batch, x.shape[1], x.shape[1]))
        is_full = np.isin(np.arange(c.depth), c.full_layers)

        def whole(q, k, v):
            return attend(q, [Segment(k, v, sees_all)], self.attention)

        def windowed(q, k, v):
            heads = (batch * places.num_windows, x.shape[1] // places.num_windows, *q.shape[2:])
            real = jnp.tile(jnp.asarray(places.is_real).reshape(places.num_windows, 1, -1), (batch, 1, 1))
            mask = jnp.broadcast_to(real, (*heads[:2], heads[1]))
            q, k, v = (part.reshape(heads) for part in (q, k, v))
            return attend(q, [Segment(k, v, mask)], self.attention).reshape(batch, -1, *heads[2:])

        def choose(full, *qkv):
            return whole(*qkv) if places.num_windows == 1 else jax.lax.cond(full, whole, windowed, *qkv)

        # A scan cannot hand out some layers' outputs only: layers that are not tapped write to a spare row.
        num_taps = len(c.deepstack_layers)
        row = np.full(c.depth, num_taps)
        row[list(c.deepstack_layers)] = np.arange(num_taps)

        def step(carry, blocks, layer):
            x, taps = carry
            x = blocks[0](x, rotation, lambda *qkv: choose(layer["full"], *qkv))
            if num_taps:
                taps = jax.lax.dynamic_update_slice_in_dim(taps, x[:, None], layer["row"], axis=1)
            return (x, taps), None

        taps = jnp.zeros((batch, num_taps + 1, *x.shape[1:]), x.dtype) if num_taps else None
        by_layer = {"full": jnp.asarray(is_full), "row": jnp.asarray(row)}
        runs = dict(unroll=self.unroll, remat=self.remat)
        (x, taps), _ = scan_layers(step, (x, taps), [self.layers], by_layer, **runs)
        return x, (taps[:, :num_taps] if num_taps else None)


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        c, is_new = config, config.generation == "qwen3"
        norm = LayerNorm if is_new else RMSNorm
        heads = (c.width, c.num_heads, c.width // c.num_heads, rngs)
        self.attention_norm = norm(c.width, axes=("embed",))
        self.query = HeadsIn(*heads, use_bias=True)
        self.key = HeadsIn(*heads, use_bias=True)
        self.value = HeadsIn(*heads, use_bias=True)
        self.attention_out = HeadsOut(c.num_heads, c.width // c.num_heads, c.width, rngs, use_bias=True)
        self.mlp_norm = norm(c.width, axes=("embed",))
        self.gate = None if is_new else Dense(c.width, c.mlp_dim, rngs, axes=("embed", "mlp"))
        self.up = Dense(c.width, c.mlp_dim, rngs, axes=("embed", "mlp"))
        self.down = Dense(c.mlp_dim, c.width, rngs, axes=("mlp", "embed"))

    def __call__(self, x: Float[Array, "b n d"], rotation: Rotation, attention) -> Float[Array, "b n d"]:
        """`attention(queries, keys, values)` decides who sees whom."""
        y = self.attention_norm(x)
        turned = turn(self.query(y), rotation), turn(self.key(y), rotation)
        x = x + self.attention_out(attention(*turned, self.value(y)))
        y = self.mlp_norm(x)
        if self.gate is None:
            return x + self.down(jax.nn.gelu(self.up(y), approximate=True))
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class Merger(nnx.Module):
    """Squares of neighbours, which stand one behind the other, joined and projected to the language model's width."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs, *, joined_norm: bool):
        joined = MERGE**2 * config.width
        self.joined_norm = joined_norm  # whether the norm is over the joined square, or over each patch
        norm = LayerNorm if config.generation == "qwen3" else RMSNorm
        self.norm = norm(joined if joined_norm else config.width, axes=("embed",))
        self.up = Dense(joined, joined, rngs, axes=("embed", "mlp"))
        self.down = Dense(joined, config.out_width, rngs, axes=("mlp", "embed"))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m o"]:
        joined = (x.shape[0], -1, MERGE**2 * x.shape[-1])
        x = self.norm(x.reshape(joined)) if self.joined_norm else self.norm(x).reshape(joined)
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Places(NamedTuple):
    """Where the patches of a picture stand while the blocks see them; windows at the edge are padded to full ones."""

    patch: Int[np.ndarray, "n"]  # its number in the picture, row by row; 0 for padding
    is_real: Bool[np.ndarray, "n"]
    token: Int[np.ndarray, "m"]  # the square of patches that is the m-th token, row by row
    angles: Float[np.ndarray, "n k"]  # radians: the first half of the pairs turns with the row, the others with columns
    num_windows: int


def arrange(config: QwenVisionConfig) -> Places:
    rows, columns = config.token_grid
    window = config.window_size // (MERGE * config.patch_size)
    side = (min(window, rows), min(window, columns)) if window else (rows, columns)
    padded = [-(-length // by) * by for length, by in zip((rows, columns), side, strict=True)]
    squares = np.full(padded, -1)
    squares[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    squares = _blocks(squares, *side).reshape(-1)
    in_squares = _blocks(np.arange(config.grid[0] * config.grid[1]).reshape(config.grid), MERGE, MERGE)
    patch = in_squares.reshape(rows * columns, MERGE**2)[np.maximum(squares, 0)].reshape(-1)
    is_real = np.repeat(squares >= 0, MERGE**2)
    patch = np.where(is_real, patch, 0)
    quarter = config.width // config.num_heads // 4
    speed = _WAVELENGTH ** -(np.arange(quarter) / quarter)
    row, column = np.divmod(patch, config.grid[1])
    angles = np.concatenate([row[:, None] * speed, column[:, None] * speed], axis=1).astype(np.float32)
    token = np.argsort(np.where(squares < 0, squares.size, squares), kind="stable")[: rows * columns]
    return Places(patch, is_real, token, angles, squares.size // (side[0] * side[1]))


def interpolation(config: QwenVisionConfig, places: Places) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """The four entries of the learned positions that stand around each patch, and their weights.

    The corners of the table stand on the corner patches; in between the interpolation is bilinear.
    """
    near, weight = [], []
    for index, length in zip(np.divmod(places.patch, config.grid[1]), config.grid, strict=True):
        place = index * ((config.position_grid - 1) / max(length - 1, 1))
        below = np.floor(place).astype(np.int64)
        near.append(np.stack([below, np.minimum(below + 1, config.position_grid - 1)], axis=1))
        weight.append(np.stack([1 - (place - below), place - below], axis=1))
    entries = near[0][:, :, None] * config.position_grid + near[1][:, None]
    weights = weight[0][:, :, None] * weight[1][:, None]
    return entries.reshape(-1, 4), weights.reshape(-1, 4).astype(np.float32)


def _blocks(grid: Int[np.ndarray, "rows columns"], height: int, width: int) -> Int[np.ndarray, "blocks size"]:
    """The entries of each block of a grid, blocks and entries row by row."""
    rows, columns = grid.shape
    cut = grid.reshape(rows // height, height, columns // width, width)
    return cut.transpose(0, 2, 1, 3).reshape(-1, height * width)
