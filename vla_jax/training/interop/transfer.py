"""Import and export: a layout's table applied to a checkpoint, one tensor in memory at a time beside the parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from vla_jax.core import errors
from vla_jax.core.types import Params
from vla_jax.training.checkpoints import flatten, nest
from vla_jax.training.interop import safetensors
from vla_jax.training.interop.compare import Difference, difference
from vla_jax.training.interop.report import Report, make_report, restarted
from vla_jax.training.interop.rules import LAYER, Layout, Rule
from vla_jax.training.interop.sources import TensorInfo, TensorSource

_ALIGNMENT = 64  # bytes

Advance = Callable[[str], None]  # told the name of every tensor that is done
Fresh = Callable[[Sequence[str]], Mapping[str, np.ndarray | Array]]  # initial values of parameters, by path


class Imported(NamedTuple):
    params: Params
    report: Report


def inspect(source: TensorSource, layout: Layout, template: Params) -> Report:
    """What an import of `source` would match and miss; nothing is read. `template` may be abstract."""
    theirs = {ours: source.tensors[name] for ours, name in layout.spellings(source.tensors).items()}
    return make_report(layout, flatten(template), theirs, str(source.path))


def import_params(
    source: TensorSource,
    layout: Layout,
    template: Params,
    *,
    allow: Sequence[str] = (),
    fresh: Fresh | None = None,
    place: Callable[[np.ndarray], Any] = lambda array: array,
    advance: Advance = lambda name: None,
) -> Imported:
    """Parameters with the paths, shapes and dtypes of `template` (abstract or arrays), numpy arrays given to `place`.

    `jax.device_put` as `place` moves every parameter as soon as it is complete; on a CPU it takes them as they stand,
    without a copy. Parameters that no tensor fills come from `fresh`.

    Raises CheckpointError, before anything is read, when the checkpoint does not fit and `allow` does not say that this
    is meant (see `Report.require`), or when parameters have to start anew and there is no `fresh`.
    """
    report = inspect(source, layout, template)
    anew = restarted(report)
    report.require(allow)
    leaves = flatten(template)
    if anew and fresh is None:
        raise errors.CheckpointError(
            f"{source.path}: {len(anew)} parameters start anew, and there are no values for them",
            expected="every parameter from the checkpoint, or `fresh`",
            found=", ".join(anew[:5]),
        )
    names = layout.spellings(source.tensors)
    matched = {row.theirs for row in report.of("matched")}
    filled: dict[str, Any] = {}
    for rule in layout.rules:
        if rule.theirs in matched:
            read = _read(source, rule, names, leaves, advance)
            filled |= {path: place(array) for path, array in read.items()}
    if anew:
        filled |= {path: place(np.asarray(value, leaves[path].dtype)) for path, value in fresh(anew).items()}
    return Imported(nest({path: filled[path] for path in leaves}), report)


def export_params(
    params: Params,
    layout: Layout,
    folder: str | Path,
    *,
    dtype: np.dtype | type = np.float32,
    max_file_bytes: int = safetensors.MAX_FILE_BYTES,
    advance: Advance = lambda name: None,
) -> list[Path]:
    """Write `params` as safetensors under the names of `layout`, in `dtype`; returns the files.

    The layout's constants are written too. Leaves that a layout never has (`Layout.fresh`) are left out. Raises
    ConfigError when the layout is for another network.
    """
    leaves = flatten(params)
    tensors = their_tensors(layout, leaves, np.dtype(dtype))
    by_name = {name: (rule, layer) for rule in layout.rules for layer, name in enumerate(rule.names)}
    by_name |= {tie.alias: by_name[tie.name] for tie in layout.tied if tie.written}

    def produce(name: str) -> np.ndarray:
        if name not in by_name:
            return np.broadcast_to(np.zeros((), dtype), tensors[name].shape)
        rule, layer = by_name[name]
        return np.ascontiguousarray(_theirs(rule, leaves, layer).astype(dtype, copy=False))

    return safetensors.write(folder, tensors, produce, max_file_bytes=max_file_bytes, advance=advance)


def their_tensors(layout: Layout, leaves: Mapping[str, Any], dtype: np.dtype) -> dict[str, TensorInfo]:
    """Names and shapes of an export, by name."""
    shapes = {name: rule.their_shape(tuple(leaves[rule.ours[0]].shape)) for rule in layout.rules for name in rule.names}
    shapes |= {tie.alias: shapes[tie.name] for tie in layout.tied if tie.written}
    shapes |= {constant.name: constant.shape for constant in layout.constants}
    return {name: TensorInfo(shapes[name], dtype) for name in sorted(shapes)}


def verify(
    source: TensorSource, layout: Layout, params: Params, advance: Advance = lambda name: None
) -> list[Difference]:
    """Turn `params` back and compare with what is in `source`, tensor by tensor: one `Difference` for each.

    Zero wherever an import only moves numbers; where it computes (`Rule.values`), the rounding of float32.
    """
    leaves, names, found = flatten(params), layout.spellings(source.tensors), []
    for padded in layout.rules:
        rule = dataclasses.replace(padded, padded_to=0)
        for layer, name in enumerate(rule.names):
            if name in names:
                ours, theirs = _theirs(rule, leaves, layer), source.read(names[name])
                if rule.longer:
                    theirs = theirs.take(range(ours.shape[rule.longer_axis]), axis=rule.longer_axis)
                found.append(difference(name, ours, theirs))
                advance(name)
    return found


def num_tensors(layout: Layout) -> int:
    """Of theirs that an import reads, for a progress bar."""
    return sum(len(rule.names) for rule in layout.rules)


def _read(
    source: TensorSource, rule: Rule, names: Mapping[str, str], leaves: Mapping[str, Any], advance: Advance
) -> dict[str, np.ndarray]:
    shape = tuple(leaves[rule.ours[0]].shape)
    arrays = [_empty(leaves[path].shape, leaves[path].dtype) for path in rule.ours]
    by_layer = LAYER in rule.theirs
    for layer in range(rule.depth or 1):
        name = names[rule.names[layer if by_layer else 0]]
        theirs = source.read(name, layer if rule.depth and not by_layer else None)
        for array, ours in zip(arrays, rule.to_ours(theirs, shape), strict=True):
            array[layer if rule.depth else ...] = ours
        if by_layer or layer == 0:
            advance(name)
    return dict(zip(rule.ours, arrays, strict=True))


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Aligned as XLA wants memory, so that `jax.device_put` on a CPU need not copy it."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def _theirs(rule: Rule, leaves: Mapping[str, Any], layer: int) -> np.ndarray:
    """The tensor `rule.names[layer]`."""
    parts = [leaves[path] for path in rule.ours]
    if not rule.depth:
        return rule.to_theirs([np.asarray(part) for part in parts])
    if LAYER in rule.theirs:
        return rule.to_theirs([np.asarray(part[layer]) for part in parts])
    return np.stack([rule.to_theirs([np.asarray(part[i]) for part in parts]) for i in range(rule.depth)])
