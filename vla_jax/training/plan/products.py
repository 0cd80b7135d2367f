"""Floating point operations of the matrix products in an optimized HLO module, whatever the compiler made of them.

A TPU has no `dot`: products become convolutions, batch dims become dilated windows of which most positions meet
padding. Counted are the multiplications with real entries, as XLA's own cost analysis does, 2 operations each.
"""

import math
import re

import numpy as np

from vla_jax.training.plan.hlo import Computation, Instruction


def operations(instruction: Instruction, computation: Computation) -> float:
    """Of one `dot` or `convolution`; 0 for everything else."""
    if instruction.opcode == "dot":
        return _dot(instruction, computation)
    return _convolution(instruction, computation) if instruction.opcode == "convolution" else 0.0


def _dot(instruction: Instruction, computation: Computation) -> float:
    left = computation.by_name[instruction.operands[0]].shapes[0]
    contracted = _numbers(instruction.attribute("lhs_contracting_dims") or "{}")
    return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(left.dims[dim] for dim in contracted)


def _convolution(instruction: Instruction, computation: Computation) -> float:
    left, kernel = (computation.by_name[name].shapes[0].dims for name in instruction.operands[:2])
    out = instruction.shapes[0].dims
    labels = re.split(r"_|->", instruction.attribute("dim_labels"))
    spatial = sorted(set(labels[0]) - set("bf"))
    window = _window(instruction.attributes, len(spatial))
    total = 2.0 * out[labels[2].index("b")] * out[labels[2].index("f")] * kernel[labels[1].index("i")]
    for label, settings in zip(spatial, window, strict=True):
        sizes = (left[labels[0].index(label)], kernel[labels[1].index(label)], out[labels[2].index(label)])
        total *= _meetings(*sizes, **settings)
    return total


def _meetings(size: int, kernel: int, out: int, *, stride: int, pad: int, base: int, dilate: int) -> int:
    """Pairs of an output position and a kernel position that meet a real entry of the input."""
    positions = np.arange(out)[:, None] * stride - pad + np.arange(kernel)[None] * dilate
    inside = (positions >= 0) & (positions <= (size - 1) * base) & (positions % base == 0)
    return int(inside.sum())


def _window(attributes: str, num_dims: int) -> list[dict[str, int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found.group(1).split()) if found else {}

    def per_dim(name: str) -> list[int]:
        return [int(part.split("_")[0]) for part in fields[name].split("x")] if name in fields else []

    strides, pads, bases, dilations = (per_dim(name) for name in ("stride", "pad", "lhs_dilate", "rhs_dilate"))
    return [
        {
            "stride": strides[dim] if strides else 1,
            "pad": pads[dim] if pads else 0,
            "base": bases[dim] if bases else 1,
            "dilate": dilations[dim] if dilations else 1,
        }
        for dim in range(num_dims)
    ]


def _numbers(braced: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", braced)]
