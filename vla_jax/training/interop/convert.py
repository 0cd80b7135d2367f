"""From foreign weights to a checkpoint of ours and back: with the recipe, statistics and names that weights alone lack.

foreign tensors + recipe + statistics + action names -> <out>/checkpoints/0, which eval, serve and start_from take
a run's checkpoint -> safetensors in a foreign layout
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console

from vla_jax.core import errors, functional, progress
from vla_jax.data.normalization import FieldStatistics, Statistics
from vla_jax.nets.language import VisionLanguageConfig
from vla_jax.policies.flow import FlowConfig
from vla_jax.training import checkpoints, trained
from vla_jax.training.interop import layouts, transfer
from vla_jax.training.interop.compare import Difference
from vla_jax.training.interop.report import Report
from vla_jax.training.interop.rules import Layout
from vla_jax.training.interop.safetensors import Safetensors
from vla_jax.training.interop.sources import OrbaxArrays, TensorSource
from vla_jax.training.recipe import Recipe

Advance = Callable[[str], None]


def open_source(path: str | Path, layout_name: str) -> TensorSource:
    """The tensors of a file or folder, nothing read but names and shapes. Raises CheckpointError, ConfigError."""
    if layout_name not in layouts.FORMATS:
        raise errors.ConfigError(f"no layout {layout_name!r}", fix=errors.closest(layout_name, layouts.FORMATS))
    return OrbaxArrays(path) if layouts.FORMATS[layout_name].orbax else Safetensors(path)


def layout_of(recipe: Recipe, layout_name: str) -> Layout:
    """The table for the policy of a recipe. Raises ConfigError for a policy that no foreign format knows."""
    backbone, decoder = recipe.policy.backbone, recipe.policy.decoder
    if not isinstance(backbone, VisionLanguageConfig):
        raise errors.ConfigError(
            f"recipe {recipe.name}: no foreign layout for this policy",
            expected="a backbone with a language model, a VisionLanguageConfig",
            found=type(backbone).__name__,
        )
    return layouts.layout(layout_name, backbone, decoder if isinstance(decoder, FlowConfig) else None)


def inspect(source: TensorSource, recipe: Recipe, layout_name: str) -> Report:
    """What `import_checkpoint` would match and miss."""
    template = functional.describe(recipe.policy.constructor())[1]
    return transfer.inspect(source, layout_of(recipe, layout_name), template)


def import_checkpoint(
    source: TensorSource,
    recipe: Recipe,
    layout_name: str,
    out: str | Path,
    statistics: Statistics,
    *,
    action_names: Sequence[str],
    control_hz: float | None,
    allow: Sequence[str] = (),
    console: rich.console.Console | None = None,
) -> tuple[Report, list[Difference]]:
    """Write `<out>/checkpoints/0` with the source's weights under the recipe; what no tensor fills starts anew.

    Also turns the result back and compares it with the source: the second value, one entry per tensor. Raises
    CheckpointError when the tensors do not fit (see `Report.require`) or `out` has checkpoints already, and ConfigError
    when statistics, names and recipe disagree.
    """
    _require_empty(Path(out))
    trained.make_edges(recipe, statistics)
    if len(action_names) != statistics.actions.dim:
        raise errors.ConfigError(
            "names of the actions", expected=f"{statistics.actions.dim}, as in the statistics", found=list(action_names)
        )
    constructor = recipe.policy.constructor()
    template, layout = functional.describe(constructor)[1], layout_of(recipe, layout_name)
    fresh = functools.partial(_initial_values, constructor, recipe.fit.seed)
    num_tensors = transfer.num_tensors(layout)
    with progress.bar(console or rich.console.Console(quiet=True)) as bar:
        advance = _task(bar, "reading", num_tensors)
        params, report = transfer.import_params(
            source, layout, template, allow=allow, fresh=fresh, place=jax.device_put, advance=advance
        )
        differences = transfer.verify(source, layout, params, _task(bar, "comparing", num_tensors))
        metadata = trained.contract(recipe, statistics, tuple(action_names), control_hz)
        metadata["imported"] = {"from": str(source.path), "layout": layout_name, "counts": report.counts()}
        writing = _task(bar, "writing", 1)
        writer = checkpoints.Checkpoints(out)
        try:
            writer.save(0, {}, params, {}, metadata)
            writer.wait()
        finally:
            writer.close()
        writing("")
    return report, differences


def export_checkpoint(
    path: str | Path,
    layout_name: str,
    out: str | Path,
    *,
    dtype: np.dtype | type = np.float32,
    console: rich.console.Console | None = None,
) -> list[Path]:
    """Write the policy of a run or checkpoint as safetensors in a foreign layout; returns the files.

    Beside them stands `vla_jax_contract.json`: the recipe, statistics, cameras and action names, which the weights'
    format has no place for.
    """
    policy = trained.load(path)
    layout = layout_of(policy.recipe, layout_name)
    num_tensors = len(transfer.their_tensors(layout, checkpoints.flatten(policy.base_params), np.dtype(dtype)))
    with progress.bar(console or rich.console.Console(quiet=True)) as bar:
        advance = _task(bar, "writing", num_tensors)
        files = transfer.export_params(policy.base_params, layout, out, dtype=dtype, advance=advance)
    contract = {name: policy.metadata[name] for name in checkpoints.REQUIRED}
    (Path(out) / "vla_jax_contract.json").write_text(json.dumps(contract, indent=2))
    return files


def read_statistics(path: str | Path) -> Statistics:
    """Ours, as `vla-jax data stats` writes them, or openpi's `norm_stats.json`.

    openpi keeps no extremes and no count: the 1 % and 99 % quantiles stand in for those, and the count is 0.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text()) if path.is_file() else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise errors.DataError(f"{path}: not JSON", found=str(error)) from error
    if "norm_stats" not in document:
        return Statistics.load(path)
    fields = {}
    for name in ("state", "actions"):
        stored = document["norm_stats"].get(name, {})
        absent = [key for key in ("mean", "std", "q01", "q99") if not stored.get(key)]
        if absent:
            raise errors.DataError(
                f"{path}: norm_stats.{name}", expected="mean, std, q01 and q99", found=f"no {', '.join(absent)}"
            )
        values = {key: tuple(map(float, stored[key])) for key in ("mean", "std", "q01", "q99")}
        fields[name] = FieldStatistics(**values, min=values["q01"], max=values["q99"], count=0)
    return Statistics(**fields)


def _initial_values(constructor: Any, seed: int, paths: Sequence[str]) -> dict[str, jax.Array]:
    """Those of a new policy, of these parameters only: the compiler drops the rest."""
    wanted = frozenset(paths)

    def pick(key):
        return {
            path: x for path, x in checkpoints.flatten(functional.init(constructor, key)[1]).items() if path in wanted
        }

    return jax.jit(pick)(jax.random.key(seed))


def _require_empty(out: Path) -> None:
    folder = out / checkpoints.FOLDER
    if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir()):
        raise errors.CheckpointError(
            f"{out}: has checkpoints already",
            expected="a new run folder",
            found=", ".join(sorted(child.name for child in folder.iterdir())),
            fix="import into another folder",
        )


def _task(bar: Any, description: str, total: int) -> Advance:
    task = bar.add_task(description, total=total)
    return lambda name: bar.advance(task)
