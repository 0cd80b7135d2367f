"""Which parameters train, and in which form the others are kept.

    params  --split-->  frozen   { kernels under adapters, what does not train }   float32, bfloat16 or int8
                        trained  { adapters a and b, what trains whole }           float32: masters, moments, averages
    frozen + trained  --join-->  params with lazy leaves, for the networks

Gradients, moments and averages exist for `trained` alone, and checkpoints hold nothing else: the frozen part is read
again from where the run started.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from vla_jax.core import functional
from vla_jax.core.types import Params
from vla_jax.training import adapters, kernels, quantize
from vla_jax.training.adapters import Lora
from vla_jax.training.checkpoints import flatten, nest
from vla_jax.training.sharding import path_name


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """The default trains everything in float32.

    Patterns are shell patterns on whole parameter paths; `*` crosses slashes. Kernels under adapters are frozen
    whatever `train` says. With `train_in="bfloat16"` the networks get kernels in bfloat16, made anew from the float32
    masters in every update, and their gradients come back in it: half the bytes to gather and to hold.
    """

    lora: tuple[Lora, ...] = ()
    train: tuple[str, ...] = ("*",)  # trained whole
    keep_frozen_in: Literal["float32", "bfloat16", "int8"] = "float32"  # int8: kernels; the rest bfloat16
    train_in: Literal["float32", "bfloat16"] = "float32"

    @property
    def freezes(self) -> bool:
        """Whether anything stays as it was."""
        return bool(self.lora) or self.train != ("*",)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A `TuningConfig` on the parameters of one policy."""

    config: TuningConfig
    policy: Callable[[nnx.Rngs], nnx.Module]

    @cached_property
    def kernels(self) -> dict[str, kernels.KernelDims]:
        return kernels.find(functional.describe(self.policy)[1], functional.logical_axes(self.policy))

    @cached_property
    def sites(self) -> dict[str, adapters.Site]:
        """Where adapters are. Raises ConfigError as `adapters.sites`."""
        return adapters.sites(self.kernels, self.config.lora, self._paths)

    @cached_property
    def whole(self) -> frozenset[str]:
        """Paths that train as they are. Raises ConfigError for a pattern that matches none."""
        return frozenset(kernels.matching(self._paths, self.config.train, "TuningConfig.train")) - self.sites.keys()

    @cached_property
    def logical_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The names of the dims of every array of the frozen and the trained part, by its path.

        An adapter's outer dims have the names of its kernel's, its rank none: wherever a mesh cuts the kernel, the sum
        needs nothing from elsewhere. Values and scales of an int8 kernel have the kernel's names.
        """
        leaves = jax.tree_util.tree_leaves_with_path(
            functional.logical_axes(self.policy), is_leaf=lambda node: isinstance(node, tuple)
        )
        names = {path_name(path): axes for path, axes in leaves}
        for path in self.kernels.keys() - self.whole if self.config.keep_frozen_in == "int8" else ():
            names |= {f"{path}/values": names[path], f"{path}/scales": names[path]}
        for path, site in self.sites.items():
            names |= adapters.logical_axes(path, site, names[path])
        return names

    @cached_property
    def _paths(self) -> list[str]:
        return list(flatten(functional.describe(self.policy)[1]))

    def split(self, key: Key[Array, ""], params: Params) -> tuple[Params, Params]:
        """The frozen and the trained part, with fresh adapters: a policy of `join` is the policy of `params`, up to the
        rounding of `keep_frozen_in`."""
        whole = {path: leaf.astype(jnp.float32) for path, leaf in flatten(params).items() if path in self.whole}
        return self.freeze(params), nest(whole | flatten(adapters.init(key, self.sites)))

    def freeze(self, params: Params) -> Params:
        """The part that never changes, in the form in which it is kept."""
        frozen = {path: leaf for path, leaf in flatten(params).items() if path not in self.whole}
        keep = self.config.keep_frozen_in
        if keep != "int8":
            return nest({path: leaf.astype(keep) for path, leaf in frozen.items()})
        here = {path: dims for path, dims in self.kernels.items() if path in frozen}
        return quantize.quantize(nest(frozen), here, tuple(here), others="bfloat16")

    def cast(self, trained: Params) -> Params:
        """What the networks get in training: kernels in `train_in`; norms, biases and adapters stay float32."""
        if self.config.train_in == "float32":
            return trained
        leaves = flatten(trained)
        return nest({p: leaf.astype(self.config.train_in) if p in self.kernels else leaf for p, leaf in leaves.items()})

    def join(self, frozen: Params, trained: Params) -> Params:
        """All parameters, to be bound inside a trace: adapted and int8 kernels are lazy leaves."""
        whole, factors = self.separate(trained)
        together = nest(adapters.whole_leaves(frozen) | flatten(whole))
        return adapters.adapt(together, factors, self.sites)

    def separate(self, trained: Params) -> tuple[Params, Params]:
        """What trains whole, and the adapters alone, as `adapters.save` and `adapters.merge` take them."""
        leaves = flatten(trained)
        factors = {path: leaves.pop(path) for site in self.sites for path in (f"{site}/a", f"{site}/b")}
        return nest(leaves), nest(factors)

    def merge(self, base: Params, trained: Params) -> Params:
        """Plain float32 parameters again: the policy as it was trained, on the base in the form it was kept in."""
        leaves = adapters.whole_leaves(self.join(self.freeze(base), trained))
        return nest({path: leaf[...].astype(jnp.float32) for path, leaf in leaves.items()})
