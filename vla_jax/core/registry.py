"""Named things that users pick by a string, ours and those of installed plugins."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TypeVar

from vla_jax.core import errors

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-mostly dict of one `kind` of thing: a duplicate raises, an unknown name lists the closest.

    Packages add entries without touching ours through the entry-point group `vla_jax.<kind>`, for example
    `[project.entry-points."vla_jax.suite"] my_suite = "my_package.suite:make"`.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]):
        self.kind, self._entries = kind, dict(entries)

    def add(self, name: str, value: T) -> None:
        if name in self._entries:
            raise errors.ConfigError(
                f"{self.kind} {name!r} is registered twice",
                found=f"{self._entries[name]!r} and {value!r}",
                fix="give one of them another name",
            )
        self._entries[name] = value

    def __getitem__(self, name: str) -> T:
        if name in self._entries:
            return self._entries[name]
        for entry_point in metadata.entry_points(group=f"vla_jax.{self.kind}", name=name):
            self.add(name, entry_point.load())
            return self._entries[name]
        raise errors.ConfigError(f"no {self.kind} {name!r}", fix=errors.closest(name, self))

    def __iter__(self) -> Iterator[str]:
        plugins = {point.name for point in metadata.entry_points(group=f"vla_jax.{self.kind}")}
        return iter(sorted(plugins | set(self._entries)))

    def __len__(self) -> int:
        return sum(1 for _ in self)
