"""What actors and a learner send each other, as bytes of `core/wire.py`. Nothing is ever unpickled.

actor                                          learner
  | -- hello: name, protocol, columns of a row -> |
  | <-- welcome: number of the next new row ----- |
  | <-- params: version, leaves ----------------- |   whenever there is a new version
  | -- rows: numbers, columns ------------------> |   stored, then acknowledged
  | <-- acknowledge: number of the next new row - |
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_jax.core import errors, trees, wire
from vla_jax.core.types import Params, Transitions

PROTOCOL = 1
INTERNAL_ERROR = "internal error: see the learner's log"  # the one text that is no refusal
LIMITS = wire.Limits(max_bytes=1 << 30, max_tokens=1 << 20, max_depth=4)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Consecutive rows of one actor. See `data/replay/host.py` for what a row is."""

    first_number: int
    rows: Transitions  # leaves [n, ...], next_observation None
    is_first: Bool[np.ndarray, "n"]  # of an episode
    versions: Int64[np.ndarray, "n"]  # of the parameters that acted
    outcomes: Float32[np.ndarray, "n"]  # on the last row of an episode 1 for a success, 0 for none; NaN elsewhere

    def __len__(self) -> int:
        return len(self.is_first)


def describe(row: Transitions) -> dict[str, str]:
    """The columns of a row, for both sides to compare."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in trees.flatten(row).items()}


def pack(kind: str, **fields: Any) -> bytes:
    return wire.pack({"kind": kind, **fields})


def unpack(message: bytes | str, *kinds: str) -> dict[str, Any]:
    """The fields of a message. Raises RequestError unless it is of one of these kinds."""
    if isinstance(message, str):
        raise errors.RequestError("message", expected=" or ".join(kinds), found=message[:500])
    fields = wire.unpack(message, LIMITS)
    if fields.get("kind") not in kinds:
        raise errors.RequestError("message: kind", expected=" or ".join(kinds), found=str(fields.get("kind"))[:80])
    return fields


def pack_rows(rows: Rows) -> bytes:
    columns = trees.flatten(rows.rows)
    return pack(
        "rows",
        first_number=rows.first_number,
        is_first=rows.is_first,
        versions=rows.versions,
        outcomes=rows.outcomes,
        names=list(columns),
        leaves=[np.asarray(leaf) for leaf in columns.values()],
    )


def unpack_rows(message: bytes | str, row: Transitions) -> Rows:
    """Rows like `row`. Raises RequestError, naming the field, for anything else."""
    fields = unpack(message, "rows")
    columns = _leaves(fields)
    expected = trees.flatten(row)
    if columns.keys() != expected.keys():
        raise errors.RequestError("rows: columns", expected=", ".join(expected), found=", ".join(columns))
    number, is_first = fields.get("first_number"), fields.get("is_first")
    if not isinstance(number, int) or number < 0:
        raise errors.RequestError("rows: first_number", expected="a number from 0 on", found=repr(number)[:80])
    num_rows = len(is_first) if isinstance(is_first, np.ndarray) and is_first.ndim == 1 else 0
    for name, dtype in (("is_first", np.bool_), ("versions", np.int64), ("outcomes", np.float32)):
        column = fields.get(name)
        if num_rows == 0 or not isinstance(column, np.ndarray) or (column.dtype, column.shape) != (dtype, (num_rows,)):
            raise errors.RequestError(f"rows: {name}", expected=f"{np.dtype(dtype)}[n >= 1]", found=_text(column))
    return Rows(number, trees.unflatten(row, columns), is_first, fields["versions"], fields["outcomes"])


def pack_params(version: int, params: Params) -> bytes:
    """Parameters of any dtype that JAX has; bfloat16 travels as its bits."""
    columns = {path: np.asarray(leaf) for path, leaf in trees.flatten(jax.device_get(params)).items()}
    halves = [path for path, leaf in columns.items() if leaf.dtype == jnp.bfloat16]
    leaves = [leaf.view(np.uint16) if leaf.dtype == jnp.bfloat16 else leaf for leaf in columns.values()]
    return pack("params", version=version, names=list(columns), leaves=leaves, bfloat16=halves)


def unpack_params(fields: Mapping[str, Any]) -> tuple[int, Params]:
    """The version and the nested dict. Raises RequestError for fields that are no parameters."""
    columns, halves = _leaves(fields), fields.get("bfloat16")
    if not isinstance(fields.get("version"), int) or not isinstance(halves, list):
        raise errors.RequestError("params", expected="version, names, leaves, bfloat16", found=", ".join(fields))
    columns |= {path: columns[path].view(jnp.bfloat16) for path in halves if path in columns}
    return fields["version"], trees.nest(columns)


def _leaves(fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    names, leaves = fields.get("names"), fields.get("leaves")
    is_good = isinstance(names, list) and isinstance(leaves, list) and len(names) == len(leaves)
    if not is_good or not all(isinstance(n, str) for n in names) or not all(isinstance(x, np.ndarray) for x in leaves):
        raise errors.RequestError(
            "message: names and leaves", expected="as many texts as arrays", found=f"{_text(names)}, {_text(leaves)}"
        )
    return dict(zip(names, leaves, strict=True))


def _text(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
