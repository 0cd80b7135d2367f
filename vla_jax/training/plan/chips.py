"""What accelerators can do: one row of numbers per chip, and how chips are wired.

Sources. TPU: "How to Scale Your Model" (jax-ml.github.io/scaling-book), table of TPU specs, and cloud.google.com/tpu
"System architecture" pages. GPU: NVIDIA's data sheets of the A100 80GB SXM and the H100 SXM (dense, without sparsity).
Rates are per second and per chip; a link's is for one direction.
"""

import dataclasses
import math

from vla_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Chip:
    name: str
    bf16_flops: float  # peak of the matrix units
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float  # one link, one direction; a GPU counts as one link into its switch
    torus_dims: int  # 0: all to all through a switch
    clock: float | None  # cycles of the matrix units, for the compiler's own estimates
    wrap_from: int  # a torus dim of this size, or a multiple on 3D ones, closes into a ring
    matrix_unit: int  # rows and columns: products over fewer leave a part of it idle


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32e9, 1.2e12, 4.5e10, 3, 1.05e9, 4, 128),
        Chip("v5e", 197e12, 16e9, 8.1e11, 4.5e10, 2, 1.5e9, 16, 128),
        Chip("v5p", 459e12, 95e9, 2.8e12, 9e10, 3, 1.75e9, 4, 128),
        Chip("v6e", 918e12, 32e9, 1.6e12, 9e10, 2, 1.75e9, 16, 256),
        Chip("a100", 312e12, 80e9, 2.0e12, 3e11, 0, None, 0, 16),
        Chip("h100", 989e12, 80e9, 3.35e12, 4.5e11, 0, None, 0, 16),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind in a grid: `v5e:16x16`, `v5p:4x4x4`, or `h100:8` behind one switch."""

    chip: Chip
    dims: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        return math.prod(self.dims)

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.dims))}"

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus_dims > 0

    def links(self, spanned: tuple[int, ...]) -> int:
        """Links out of one chip that a collective over these grid dims can use: two on a ring, one on a line.

        A line gives half: its end chips have to take everything in through one link. Without a grid there is one.
        """
        if not self.is_tpu:
            return 1
        return sum(2 if self._wraps(self.dims[dim]) else 1 for dim in spanned)

    def _wraps(self, size: int) -> bool:
        whole = size % self.chip.wrap_from == 0 if self.chip.torus_dims == 3 else size == self.chip.wrap_from
        return whole and size > 2


def parse_topology(text: str) -> Topology:
    """`chip:AxB[xC]`. Raises ConfigError for an unknown chip or a grid of another number of dims."""
    name, _, grid = text.partition(":")
    if name not in CHIPS:
        raise errors.ConfigError(f"--topology {text!r}: no chip {name!r}", fix=errors.closest(name, CHIPS))
    chip = CHIPS[name]
    sizes = grid.split("x")
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or len(sizes) != max(1, chip.torus_dims):
        example = {0: f"{name}:8", 2: f"{name}:4x4", 3: f"{name}:4x4x4"}[chip.torus_dims]
        raise errors.ConfigError(f"--topology {text!r}", expected=f"a grid as in {example}", found=grid or "nothing")
    return Topology(chip, tuple(map(int, sizes)))
