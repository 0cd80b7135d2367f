"""SERL's encoder of pictures: a residual trunk, learned spatial embeddings, a bottleneck, and the robot's state beside.

    camera --trunk--> map [h w c] --spatial embeddings--> [8 c] --Dense 256, LayerNorm, tanh--+--> features
    (one trunk for all cameras)                           state --Dense 64, LayerNorm, tanh---+

An embedding is a picture of weights per channel: it says where in the map something is, which a mean would lose. SERL
keeps the trunk frozen at weights from ImageNet, which are not part of this package (`training/interop/resnet10.py`
reads them); a learner freezes it by leaving the subtree `trunk` out of what it trains. Source: SERL (arXiv 2401.16013)
and its code; the trunk is ResNet-10 with group norm.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vla_jax.core import errors
from vla_jax.core.types import Observation

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, per channel in [0, 1]
_GROUPS = 4

Maps = dict[str, Float[Array, "b h w c"]]  # by camera


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """Defaults: SERL's. `state_dim` 0 leaves the state out."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]  # pixels, height and width, of all cameras
    state_dim: int = 0
    filters: int = 64  # of the trunk's first stage; every further one has twice as many
    stages: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks in each; all but the first halve the map
    spatial_features: int = 8  # per channel
    bottleneck: int = 256  # features per camera
    state_features: int = 64

    def __post_init__(self):
        if not self.cameras or min(*self.image_size, self.filters, *self.stages, self.spatial_features) < 1:
            raise errors.ConfigError("PixelConfig", expected="a camera and positive sizes", found=self)
        if self.filters % _GROUPS:
            raise errors.ConfigError("PixelConfig.filters", expected=f"a multiple of {_GROUPS}", found=self.filters)

    @property
    def feature_dim(self) -> int:
        return len(self.cameras) * self.bottleneck + (self.state_features if self.state_dim else 0)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the trunk's output."""
        factor = 2 ** (1 + len(self.stages))
        height, width = (-(-size // factor) for size in self.image_size)
        return height, width, self.filters * 2 ** (len(self.stages) - 1)


class PixelEncoder(nnx.Module):
    """Observations to features; `heads(maps(observation), state)` is the same in two steps."""

    def __init__(self, config: PixelConfig, rngs: nnx.Rngs):
        self.config, self.feature_dim = config, config.feature_dim
        self.trunk = ResidualTrunk(config.filters, config.stages, rngs)
        self.cameras = nnx.Dict({name: CameraHead(config, rngs) for name in config.cameras})
        self.state = Embedding(config.state_dim, config.state_features, rngs) if config.state_dim else None

    def __call__(self, observation: Observation) -> Float[Array, "b f"]:
        return self.heads(self.maps(observation), observation)

    def maps(self, observation: Observation) -> Maps:
        """What the trunk makes of every camera; zeros where a camera is absent."""
        self._check(observation)
        pictures = jnp.concatenate([observation.images[name] for name in self.config.cameras])
        maps = jnp.split(self.trunk(pictures), len(self.config.cameras))
        present = [observation.image_mask[name][:, None, None, None] for name in self.config.cameras]
        return {
            name: jnp.where(mask, each, 0.0)
            for name, each, mask in zip(self.config.cameras, maps, present, strict=True)
        }

    def heads(self, maps: Maps, observation: Observation | None) -> Float[Array, "b f"]:
        parts = [self.cameras[name](maps[name]) for name in self.config.cameras]
        if self.state is not None:
            parts.append(self.state(observation.state))
        return jnp.concatenate(parts, axis=-1)

    def _check(self, observation: Observation) -> None:
        for name in self.config.cameras:
            if name not in observation.images:
                raise errors.ConfigError(
                    f"observation lacks camera {name!r}",
                    expected=self.config.cameras,
                    found=tuple(observation.images),
                )
            size = observation.images[name].shape[1:3]
            if size != self.config.image_size:
                raise errors.ConfigError(
                    f"camera {name!r} has another size", expected=self.config.image_size, found=size
                )


class ResidualTrunk(nnx.Module):
    """ResNet version 1 with group norm up to the map before pooling; pictures are uint8."""

    def __init__(self, filters: int, stages: tuple[int, ...], rngs: nnx.Rngs):
        self.conv = _conv(3, filters, 7, rngs, stride=2, padding=((3, 3), (3, 3)))
        self.norm = _norm(filters, rngs)
        widths = [filters * 2**i for i in range(len(stages))]
        blocks = []
        for i, (width, count) in enumerate(zip(widths, stages, strict=True)):
            sizes = [widths[max(i - 1, 0)], *[width] * count]
            strides = [1 if i == 0 else 2, *[1] * (count - 1)]
            pairs = zip(itertools.pairwise(sizes), strides, strict=True)
            blocks += [ResidualBlock(a, b, stride, rngs) for (a, b), stride in pairs]
        self.blocks = nnx.List(blocks)

    def __call__(self, pictures: UInt8[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        mean, std = (jnp.array(values).reshape(1, 1, 1, 3) for values in (_MEAN, _STD))
        x = (pictures.astype(jnp.float32) / 255 - mean) / std
        x = jax.nn.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return x


class ResidualBlock(nnx.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, rngs: nnx.Rngs):
        self.conv1, self.norm1 = _conv(in_channels, channels, 3, rngs, stride=stride), _norm(channels, rngs)
        self.conv2, self.norm2 = _conv(channels, channels, 3, rngs), _norm(channels, rngs)
        changes = in_channels != channels or stride != 1
        self.project = _conv(in_channels, channels, 1, rngs, stride=stride) if changes else None
        self.project_norm = _norm(channels, rngs) if changes else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        y = self.norm2(self.conv2(jax.nn.relu(self.norm1(self.conv1(x)))))
        return jax.nn.relu(y + (x if self.project is None else self.project_norm(self.project(x))))


class SpatialEmbeddings(nnx.Module):
    """`feature[c, k] = sum over h, w of map[h, w, c] * kernel[h, w, c, k]`, flattened with `c` first."""

    def __init__(self, shape: tuple[int, int, int], num_features: int, rngs: nnx.Rngs):
        init = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (*shape, num_features), jnp.float32))

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        embedded = jnp.einsum("bhwc,hwck->bck", maps, self.kernel[...])
        return embedded.reshape(embedded.shape[0], -1)


class CameraHead(nnx.Module):
    def __init__(self, config: PixelConfig, rngs: nnx.Rngs):
        self.spatial = SpatialEmbeddings(config.map_shape, config.spatial_features, rngs)
        flat = config.map_shape[2] * config.spatial_features
        self.bottleneck = Embedding(flat, config.bottleneck, rngs)

    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        return self.bottleneck(self.spatial(maps))


class Embedding(nnx.Module):
    """Dense, LayerNorm, tanh."""

    def __init__(self, in_dim: int, out_dim: int, rngs: nnx.Rngs):
        self.dense = nnx.Linear(in_dim, out_dim, rngs=rngs)
        self.norm = nnx.LayerNorm(out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        return jnp.tanh(self.norm(self.dense(x)))


class PictureClassifier(nnx.Module):
    """One logit per observation: encoder, Dense 256, dropout, LayerNorm, activation, Dense 1.

    ReLU for SERL's success classifier, leaky ReLU for its VICE discriminator.
    """

    def __init__(self, config: PixelConfig, rngs: nnx.Rngs, *, hidden: int = 256, leaky: bool = False):
        self.encoder = PixelEncoder(config, rngs)
        self.hidden = nnx.Linear(config.feature_dim, hidden, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, 1, rngs=rngs)
        self.leaky = leaky

    def __call__(self, observation: Observation, key: Array | None = None, rate: float = 0.0) -> Float[Array, "b"]:
        return self.head(self.encoder.maps(observation), observation, key, rate)

    def head(
        self, maps: Maps, observation: Observation | None, key: Array | None = None, rate: float = 0.0
    ) -> Float[Array, "b"]:
        """From the trunk's maps on. With a key a share `rate` of the hidden units is dropped."""
        x = self.hidden(self.encoder.heads(maps, observation))
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - rate, x.shape)
            x = jnp.where(kept, x / (1 - rate), 0.0)
        x = self.norm(x)
        return self.out(jax.nn.leaky_relu(x) if self.leaky else jax.nn.relu(x))[:, 0]


def _conv(a: int, b: int, window: int, rngs: nnx.Rngs, *, stride: int = 1, padding="SAME") -> nnx.Conv:
    init = nnx.initializers.he_normal()
    return nnx.Conv(
        a, b, (window, window), strides=stride, padding=padding, use_bias=False, kernel_init=init, rngs=rngs
    )


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(channels, num_groups=_GROUPS, epsilon=1e-5, rngs=rngs)
