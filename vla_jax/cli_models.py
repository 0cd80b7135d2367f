"""`vla-jax import` and `vla-jax export`: foreign weights in and out, with what was matched on the screen."""

import dataclasses
from typing import Literal

import ml_dtypes
import numpy as np
import rich.console

from vla_jax.core import errors
from vla_jax.training import trained
from vla_jax.training.interop import compare, convert, report
from vla_jax.training.recipe import Recipe

LayoutName = Literal["openpi", "lerobot", "paligemma", "gemma3", "gemma", "siglip", "qwen2_5_vl", "qwen3_vl"]
_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Import:
    layout: LayoutName  # whose names and shapes the tensors have
    recipe: str  # FILE[:FUNCTION]: the network, the tokenizer and the cameras that the weights are for
    statistics: str | None = None  # from `vla-jax data stats`, or openpi's norm_stats.json
    action_names: tuple[str, ...] = ()  # of the robot's action dims, in order
    control_hz: float | None = None  # the rate at which the policy is to act
    allow: tuple[str, ...] = ()  # patterns of tensors of theirs to leave out, or of parameters of ours to start anew
    dry_run: bool = False  # only say what would be matched and missed
    everything: bool = False  # list the matched tensors too


@dataclasses.dataclass(frozen=True)
class Export:
    layout: LayoutName
    dtype: Literal["float32", "bfloat16"] = "float32"


def import_(source: str, out: str, recipe: Recipe, options: Import, console: rich.console.Console) -> None:
    """Print the report, then, unless `dry_run`, write the checkpoint and print how exactly it turns back."""
    tensors = convert.open_source(source, options.layout)
    found = convert.inspect(tensors, recipe, options.layout)
    console.print(report.to_table(found, everything=options.everything))
    if options.dry_run:
        return
    found.require(options.allow)
    lacking = [name for name in ("statistics", "action_names") if not getattr(options, name)]
    if lacking:
        raise errors.ConfigError(
            f"vla-jax import {source}",
            expected="what weights do not say: statistics and action names (see docs/models.md)",
            found=f"no {' and no '.join('--' + name.replace('_', '-') for name in lacking)}",
            fix="--statistics FILE --action-names NAME NAME ... (or --dry-run for the report alone)",
        )
    _, differences = convert.import_checkpoint(
        tensors,
        recipe,
        options.layout,
        out,
        convert.read_statistics(options.statistics),
        action_names=options.action_names,
        control_hz=options.control_hz,
        allow=options.allow,
        console=console,
    )
    console.print(compare.to_table(differences, title="turned back and compared with the source", most=3))
    console.print(f"{out}: imported as recipe {recipe.name}")


def merge(run: str, out: str, console: rich.console.Console) -> None:
    """A run with adapters or frozen parts as a checkpoint of its own."""
    trained.save_merged(run, out)
    console.print(f"{out}: {run}, merged with what it started from")


def export(run: str, out: str, options: Export, console: rich.console.Console) -> None:
    """Write the safetensors and name them."""
    files = convert.export_checkpoint(run, options.layout, out, dtype=_DTYPES[options.dtype], console=console)
    for file in files:
        console.print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
