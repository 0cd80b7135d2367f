"""Checkpoints: what a run needs to go on exactly, and what acting needs and nothing else.

    <run>/checkpoints/<step>/
        actor/       parameters for acting, a plain nested dict
        learner/     the rest of the learner state; leaves that `actor` holds are not written twice
        source/      where the data or the replay buffer stood
        metadata/    JSON: recipe, normalization, cameras, action, versions, and a table of every leaf

A step appears by a rename when it is complete, so a killed save leaves the step before as the latest. Arrays restore
onto any mesh. Trees are compared leaf by leaf before anything is loaded.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as managers

from vla_jax.core import errors
from vla_jax.core.trees import flatten, nest, unflatten
from vla_jax.core.types import Params
from vla_jax.training import sharding

FOLDER = "checkpoints"
FORMAT = 1
REQUIRED = ("recipe", "normalization", "cameras", "action")
_PACKAGES = ("vla-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_MAX_ROWS = 20
# Left to itself, orbax holds every array once more, compressed, before it writes the first file.
_FILE_BYTES = 32 << 20
_CHUNK_BYTES = 8 << 20

Leaves = dict[str, Any]  # path -> array, abstract array or Python number


class Checkpoints:
    """The checkpoints of one run: saved in the background, the last `max_to_keep` and the best one kept.

    `best_metric` names a value of the `metrics` given to `save`; `best_mode` says whether "max" or "min" is best.
    """

    def __init__(
        self, run_dir: str | Path, *, max_to_keep: int = 3, best_metric: str | None = None, best_mode: str = "max"
    ):
        self.folder = Path(run_dir).absolute() / FOLDER
        self._best_metric = best_metric
        policies = [managers.LatestN(max_to_keep)]
        if best_metric is not None:
            worst = -math.inf if best_mode == "max" else math.inf
            policies.append(
                managers.BestN(
                    get_metric_fn=lambda metrics: _number(metrics.get(best_metric), worst),
                    reverse=best_mode == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy(policies), cleanup_tmp_directories=True
            ),
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        learner_state: Any,
        actor_params: Params,
        source_state: Any,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copy everything off the devices, then write in the background; the buffers may be donated at once.

        Raises ConfigError when `metadata` lacks one of `REQUIRED`.
        """
        trees = {"learner": learner_state, "actor": actor_params, "source": source_state}
        leaves = {name: flatten(tree) for name, tree in trees.items()}
        shared = _shared(leaves["learner"], leaves["actor"])
        own = {path: leaf for path, leaf in leaves["learner"].items() if path not in shared}
        stored = {name: _without_empty(part) for name, part in (leaves | {"learner": own}).items()}
        document = {
            **check_metadata(metadata),
            "format": FORMAT,
            "step": step,
            "versions": versions(),
            "shared": shared,
            "leaves": {name: {path: describe(leaf) for path, leaf in part.items()} for name, part in leaves.items()},
        }
        items = {
            name: ocp.args.PyTreeSave(
                nest({path: _storable(leaf) for path, leaf in part.items()}),
                nest({path: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for path in part}),
                ocdbt_target_data_file_size=_FILE_BYTES,
            )
            for name, part in stored.items()
            if part
        }
        items["metadata"] = ocp.args.JsonSave(plain(document))
        best = {name: float(value) for name, value in (metrics or {}).items() if name == self._best_metric}
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=best or None, force=True)

    def metadata(self, step: int) -> dict[str, Any]:
        return read_metadata(self.folder / str(step))

    def restore(self, step: int, learner_state: Any, source_state: Any) -> tuple[Any, Any]:
        """The learner and source states of `step`, in the structure, types and shardings of the given ones.

        `learner_state` may be abstract (`jax.ShapeDtypeStruct` with shardings). Raises CheckpointError with a table of
        every leaf that differs, before anything is loaded.
        """
        self.wait()
        templates = {"learner": learner_state, "source": source_state}
        found = _restore(self.folder / str(step), templates)
        return found["learner"], found["source"]

    def delete(self, step: int) -> None:
        self._manager.delete(step)

    def wait(self) -> None:
        """Until the last save is complete. Raises what the writing thread raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def load_actor(
    path: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    logical_axes: Mapping[str, Any] | None = None,
    expected: Params | None = None,
) -> tuple[Params, dict[str, Any]]:
    """The parameters for acting and the metadata, without optimizer, targets or data state.

    `path` is a run folder (then `step`, default the latest) or the folder of one step. Without `mesh` everything goes
    to the first device. `expected` (arrays or abstract) is compared before loading. Raises CheckpointError.
    """
    folder = step_folder(path, step)
    document = read_metadata(folder)
    table = document["leaves"]["actor"]
    if expected is not None:
        compare(flatten(expected), table, f"{folder}: the actor's parameters are of another shape")
    abstract = nest({name: jax.ShapeDtypeStruct(tuple(shape), _dtype(dtype)) for name, (shape, dtype) in table.items()})
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, abstract)
    else:
        shardings = sharding.param_shardings(abstract, mesh, logical_axes)
    placed = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, shardings
    )
    return nest(_load(folder / "actor", flatten(placed))), document


def load_learner(path: str | Path, learner_state: Any, *, step: int | None = None) -> Any:
    """The learner state of a run folder or of one step, as `Checkpoints.restore` gives it."""
    return _restore(step_folder(path, step), {"learner": learner_state})["learner"]


def step_folder(path: str | Path, step: int | None = None) -> Path:
    """The folder of one complete checkpoint in a run, a `checkpoints` folder or a step folder."""
    path = Path(path).absolute()
    if step is None and (path / "metadata").is_dir():
        return path
    root = path / FOLDER if (path / FOLDER).is_dir() else path
    steps = sorted(int(child.name) for child in root.iterdir() if child.name.isdigit()) if root.is_dir() else []
    chosen = (steps[-1] if steps else None) if step is None else step
    if chosen not in steps:
        raise errors.CheckpointError(
            f"{path}: no checkpoint" + ("" if step is None else f" of step {step}"),
            expected="a run folder, or the folder of one checkpoint",
            found=f"steps {steps}" if steps else "no complete checkpoint",
            fix="train first, or pick one of the steps found",
        )
    return root / str(chosen)


def read_metadata(folder: Path) -> dict[str, Any]:
    """The JSON beside the weights. Raises CheckpointError when it is missing, incomplete or of a newer format."""
    file = folder / "metadata" / "metadata"
    if not file.is_file():
        raise errors.CheckpointError(
            f"{folder}: not a checkpoint of vla_jax",
            expected="metadata/metadata with " + ", ".join(REQUIRED),
            found=", ".join(sorted(child.name for child in folder.iterdir())) if folder.is_dir() else "no such folder",
            fix="import foreign weights with their own importer",
        )
    document = json.loads(file.read_text())
    if document.get("format") != FORMAT:
        raise errors.CheckpointError(
            f"{folder}: another checkpoint format",
            expected=FORMAT,
            found=document.get("format"),
            fix=f"use vla-jax {document.get('versions', {}).get('vla-jax', 'of the run')}",
        )
    return document


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`metadata` as given. Raises ConfigError when something that evaluation needs has no entry."""
    missing = [name for name in REQUIRED if name not in metadata]
    if missing:
        raise errors.ConfigError(
            "checkpoint metadata is incomplete",
            expected=", ".join(REQUIRED),
            found=f"no {', '.join(missing)}",
            fix="give every entry; write None where the policy has none, for example normalization of a toy task",
        )
    return dict(metadata)


def versions() -> dict[str, str]:
    """Of the packages that decide what a checkpoint means; one that is not installed is left out."""
    installed = {name.lower() for name in (dist.metadata["Name"] for dist in packages.distributions()) if name}
    return {name: packages.version(name) for name in _PACKAGES if name in installed}


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses and mappings become dicts, arrays and tuples lists, paths strings.

    Raises ConfigError for anything else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise errors.ConfigError(
        f"checkpoint metadata holds a {type(value).__name__}, which JSON cannot", found=repr(value)[:200]
    )


def describe(leaf: Any) -> tuple[list[int], str]:
    """Shape and dtype; Python numbers have the dtypes int, float and bool."""
    if isinstance(leaf, bool | int | float):
        return [], type(leaf).__name__
    return list(leaf.shape), str(leaf.dtype)


def compare(expected: Leaves, found: Mapping[str, Any], place: str) -> None:
    """Raise CheckpointError with one line for every leaf that is missing, left over, or of another shape or dtype."""
    rows = []
    for path in sorted(expected.keys() | found.keys()):
        ours = _leaf_text(describe(expected[path])) if path in expected else "-"
        stored = _leaf_text(found[path]) if path in found else "-"
        if ours != stored:
            rows.append((path, ours, stored))
    if not rows:
        return
    shown = [("path", "expected", "found"), *rows[:_MAX_ROWS]]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    table = "\n".join(f"  {path:<{widths[0]}}  {ours:<{widths[1]}}  {stored}" for path, ours, stored in shown)
    more = f"\n  ... and {len(rows) - _MAX_ROWS} more" if len(rows) > _MAX_ROWS else ""
    raise errors.CheckpointError(
        f"{place}, {len(rows)} of {len(expected.keys() | found.keys())} leaves differ\n{table}{more}",
        fix="use the recipe stored in the checkpoint's metadata, or start a new run folder",
    )


def _leaf_text(described: Iterable[Any]) -> str:
    shape, dtype = described
    return f"{dtype}{list(shape)}" if shape or dtype not in ("int", "float", "bool") else dtype


def _shared(learner: Leaves, actor: Leaves) -> dict[str, str]:
    """Learner paths whose very array is also a leaf of the actor: they are written once, there."""
    where = {id(leaf): path for path, leaf in actor.items() if isinstance(leaf, jax.Array)}
    return {path: where[id(leaf)] for path, leaf in learner.items() if id(leaf) in where}


def _storable(leaf: Any) -> Any:
    """Typed keys become their bits, Python numbers numpy ones (which also work with several processes)."""
    if isinstance(leaf, bool | int | float):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _load(folder: Path, templates: Leaves) -> Leaves:
    """The stored leaves with the types, dtypes and shardings of the templates; those without entries are not stored."""
    templates, everything = _without_empty(templates), templates
    empty = {
        path: jnp.zeros(leaf.shape, leaf.dtype, device=getattr(leaf, "sharding", None))
        for path, leaf in everything.items()
        if path not in templates
    }
    if not templates:
        return empty
    abstract, options = {}, {}
    for path, leaf in templates.items():
        bits = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            abstract[path] = jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=leaf.sharding)
            options[path] = ocp.ArrayRestoreArgs(
                sharding=leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
                global_shape=bits.shape,
                dtype=bits.dtype,
            )
        else:
            abstract[path] = np.asarray(leaf)
            options[path] = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.asarray(leaf).dtype)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(nest(abstract), restore_args=nest(options), partial_restore=True),
        )
    loaded = flatten(restored)
    return empty | {path: _like(leaf, loaded[path]) for path, leaf in templates.items()}


def _restore(folder: Path, templates: Mapping[str, Any]) -> dict[str, Any]:
    """The states named in `templates`, the learner's among them; leaves that acting needs are stored as the actor's."""
    document = read_metadata(folder)
    expected = {name: flatten(template) for name, template in templates.items()}
    for name, leaves in expected.items():
        compare(leaves, document["leaves"][name], f"{folder}: the {name} state is of another shape")
    shared, learner = document["shared"], expected["learner"]
    wanted = {
        **expected,
        "actor": {shared[path]: leaf for path, leaf in learner.items() if path in shared},
        "learner": {path: leaf for path, leaf in learner.items() if path not in shared},
    }
    loaded = {name: _load(folder / name, leaves) for name, leaves in wanted.items()}
    loaded["learner"] |= {path: loaded["actor"][name] for path, name in shared.items()}
    return {name: unflatten(template, loaded[name]) for name, template in templates.items()}


def _like(template: Any, loaded: Any) -> Any:
    if isinstance(template, bool | int | float):
        return type(template)(loaded.item())
    if _is_key(template):
        return jax.random.wrap_key_data(loaded, impl=_key_kinds()[str(template.dtype)])
    return loaded


def _without_empty(leaves: Leaves) -> Leaves:
    """Leaves that have entries; orbax refuses to write others, such as the fixtures of a scene that has none."""
    return {path: leaf for path, leaf in leaves.items() if math.prod(getattr(leaf, "shape", ()))}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_kinds() -> dict[str, str]:
    """Name of a typed key's dtype to its implementation, for example `key<fry>` to `threefry2x32`."""
    kinds = ("threefry2x32", "rbg", "unsafe_rbg")
    return {str(jax.eval_shape(lambda kind=kind: jax.random.key(0, impl=kind)).dtype): kind for kind in kinds}


def _dtype(name: str) -> Any:
    if name not in _key_kinds():
        return jnp.dtype(name)
    return jax.eval_shape(lambda: jax.random.key(0, impl=_key_kinds()[name])).dtype


def _number(value: Any, worst: float) -> float:
    return worst if value is None or math.isnan(value) else float(value)


def _handlers() -> dict[str, Any]:
    trees = {name: ocp.PyTreeCheckpointHandler() for name in ("learner", "actor", "source")}
    return {**trees, "metadata": ocp.JsonCheckpointHandler()}
