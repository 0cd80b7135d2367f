"""Configs as JSON and back: what a checkpoint stores of its recipe."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from vla_jax.core import errors


def to_plain(value: Any) -> Any:
    """JSON types; every dataclass carries its class name as "type"."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any, place: str = "recipe") -> Any:
    """The inverse of `to_plain` for a value annotated as `kind`. Raises CheckpointError for a field nobody knows."""
    options = (
        typing.get_args(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
        else (kind,)
    )
    if value is None and type(None) in options:
        return None
    if isinstance(value, Mapping) and "type" in value:
        for option in options:
            if dataclasses.is_dataclass(option) and option.__name__ == value["type"]:
                return _dataclass_from_plain(option, value, place)
        raise errors.CheckpointError(
            f"{place}: a {value['type']} stands here",
            expected=" or ".join(getattr(option, "__name__", str(option)) for option in options),
            fix="use the version of vla_jax that wrote it",
        )
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list):
            items = typing.get_args(option)
            inner = items[:1] * len(value) if items[-1] is Ellipsis else items
            return tuple(from_plain(item, entry, place) for item, entry in zip(inner, value, strict=True))
    return value


def _dataclass_from_plain(kind: type, value: Mapping[str, Any], place: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints) - {"type"})
    if unknown:
        raise errors.CheckpointError(
            f"{place}: {kind.__name__} has no field {unknown[0]!r}", fix=errors.closest(unknown[0], hints)
        )
    return kind(**{name: from_plain(hints[name], value[name], f"{place}.{name}") for name in value if name != "type"})
