"""How one parameter of ours and one tensor of a foreign checkpoint turn into each other.

A `Layout` is a table of `Rule`s. Importing reads it from left to right, exporting from right to left, so the two
cannot drift apart.

    Rule(("layers/key/kernel", "layers/value/kernel"), "kv_einsum/w", "parts g d k -> parts d g k", depth=18)
          ours, stacked over layers                     theirs          of one layer, an einops pattern
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

import numpy as np
from einops import rearrange
from jaxtyping import Float

from vla_jax.core import errors

LAYER = "{layer}"

Values = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of theirs (or, with `{layer}` in its name, one per layer) and the one or more leaves of ours it fills.

    `pattern` says how the axes of one layer move, theirs first. With several leaves of ours its right side begins with
    the axis `parts`, one entry per leaf. `depth` is the number of layers stacked in front of our leaf, 0 where there
    are none; without `{layer}` in their name, theirs has the same axis in front. `values` changes numbers where
    conventions differ; `undo` is its inverse, where it is not its own. Along the axis `longer` theirs may go on:
    padding, left out on import and, up to `padded_to` entries, zeros on export.
    """

    ours: tuple[str, ...]
    theirs: str
    pattern: str
    depth: int = 0
    sizes: tuple[tuple[str, int], ...] = ()  # of axes that are grouped on both sides
    values: Values | None = None
    undo: Values | None = None
    longer: str = ""
    padded_to: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of their tensors, by layer where each layer has its own."""
        if LAYER not in self.theirs:
            return (self.theirs,)
        return tuple(self.theirs.replace(LAYER, str(layer)) for layer in range(self.depth))

    def their_shape(self, our_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one of `names`, given the shape of one of our leaves."""
        own = our_shape[1:] if self.depth else our_shape
        # An array of stride 0 has any shape and no memory.
        parts = np.broadcast_to(np.zeros((), np.int8), (len(self.ours), *own) if len(self.ours) > 1 else own)
        shape = rearrange(parts, self._backward(), **dict(self.sizes)).shape
        shape = self._pad(np.broadcast_to(np.zeros((), np.int8), shape)).shape
        return (self.depth, *shape) if self.depth and LAYER not in self.theirs else shape

    def to_ours(self, theirs: np.ndarray, our_shape: tuple[int, ...]) -> list[np.ndarray]:
        """One layer of theirs as one layer of every leaf of ours, views where the numbers stay the same."""
        own = our_shape[1:] if self.depth else our_shape
        right = self.pattern.split("->")[1].split()
        right = right[1:] if len(self.ours) > 1 else right
        known = {axis: size for axis, size in zip(_groups(right), own, strict=True) if axis.isidentifier()}
        if self.longer:
            theirs = theirs.take(range(known[self.longer]), axis=self.longer_axis)
        moved = rearrange(theirs, self.pattern, **known, **dict(self.sizes))
        moved = self.values(moved) if self.values else moved
        return list(moved) if len(self.ours) > 1 else [moved]

    def to_theirs(self, ours: list[np.ndarray]) -> np.ndarray:
        """One layer of every leaf of ours as one layer of theirs."""
        array = np.stack(ours) if len(self.ours) > 1 else ours[0]
        undo = self.undo or self.values
        array = undo(array) if undo else array
        return self._pad(rearrange(array, self._backward(), **dict(self.sizes)))

    @property
    def longer_axis(self) -> int:
        """Of theirs."""
        return self.pattern.split("->")[0].split().index(self.longer)

    def _pad(self, theirs: np.ndarray) -> np.ndarray:
        if not self.padded_to:
            return theirs
        more = [(0, 0)] * theirs.ndim
        more[self.longer_axis] = (0, max(0, self.padded_to - theirs.shape[self.longer_axis]))
        return np.pad(theirs, more)

    def _backward(self) -> str:
        left, right = self.pattern.split("->")
        return f"{right.strip()} -> {left.strip()}"


@dataclasses.dataclass(frozen=True)
class Unused:
    """A tensor of theirs that our network has no place for, and why nothing is lost."""

    pattern: str  # a regular expression over the whole name
    why: str


@dataclasses.dataclass(frozen=True)
class Constant:
    """A tensor that their loader asks for and that changes no output: written on export, zeros."""

    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tied:
    """One tensor of theirs under two names, of which files have one or both: `alias` serves where `name` is absent."""

    alias: str
    name: str  # of a rule
    written: bool = False  # whether an export has both, for loaders that ask for both


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything that is known of one foreign checkpoint format, for one network of ours."""

    name: str
    rules: tuple[Rule, ...]
    unused: tuple[Unused, ...] = ()
    constants: tuple[Constant, ...] = ()
    tied: tuple[Tied, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()  # regular expressions, in order: other spellings of their names
    fresh: tuple[str, ...] = ()  # patterns of our leaves that this layout never has, so that they start anew

    def __post_init__(self):
        ours = [path for rule in self.rules for path in rule.ours]
        theirs = [name for rule in self.rules for name in rule.names]
        for kind, names in (("parameter of ours", ours), ("tensor of theirs", theirs)):
            twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            if twice:
                raise errors.ConfigError(f"layout {self.name}: two rules for one {kind}", found=twice[0])

    def canonical(self, name: str) -> str:
        """Their name in the spelling of the rules."""
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        return name

    def spellings(self, names: Iterable[str]) -> dict[str, str]:
        """The names of a file by their canonical spelling, ties resolved."""
        found = {self.canonical(name): name for name in names}
        for tie in self.tied:
            if tie.alias in found and tie.name not in found:
                found[tie.name] = found.pop(tie.alias)
        return found

    def why_unused(self, name: str) -> str | None:
        """The reason for which a tensor of theirs is left out; None when it should not be."""
        return next((unused.why for unused in self.unused if re.fullmatch(unused.pattern, name)), None)


def flip_sign(array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """For what makes a velocity: theirs points from data to noise, ours from noise to data."""
    return -array


def reflect_time(
    periods: Float[np.ndarray, "half"], rows: slice = slice(None)
) -> Callable[[Float[np.ndarray, "d out"]], Float[np.ndarray, "d out"]]:
    """For a kernel that reads sines and cosines of the flow time, which runs the other way there: `1 - time`.

    With w = 2 pi / period, sin(w (1 - t)) = sin(w) cos(w t) - cos(w) sin(w t), and likewise for the cosine, so the
    other features are a reflection of ours and the kernel takes it in: the same function to the last bits of float32,
    and its own inverse. `rows` are those of the kernel that read the time.
    """
    angle = 2 * math.pi / periods.astype(np.float64)
    sin, cos = np.sin(angle)[:, None], np.cos(angle)[:, None]

    def reflect(kernel: Float[np.ndarray, "d out"]) -> Float[np.ndarray, "d out"]:
        sines, cosines = np.split(kernel[rows].astype(np.float64), 2)
        turned = kernel.copy()
        turned[rows] = np.concatenate([sin * cosines - cos * sines, cos * cosines + sin * sines])
        return turned

    return reflect


def _groups(tokens: list[str]) -> list[str]:
    """Axes of one side of a pattern, a parenthesized group as one."""
    return re.findall(r"\([^)]*\)|\S+", " ".join(tokens))
