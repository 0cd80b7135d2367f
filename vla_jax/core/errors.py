"""Errors that say where, what was expected, what was found and how to mend it."""

import difflib
from collections.abc import Iterable


class VlaError(Exception):
    """Base of every error a user can mend: one line of place, then expected, found and fix."""

    def __init__(self, place: str, *, expected: object = None, found: object = None, fix: str | None = None):
        self.place, self.expected, self.found, self.fix = place, expected, found, fix
        rows = (("expected", expected), ("found", found), ("fix", fix))
        super().__init__("\n".join([place, *(f"  {name:<9} {value}" for name, value in rows if value is not None)]))


class ConfigError(VlaError):
    """A recipe or config holds a value that cannot work."""


class DataError(VlaError):
    """A dataset or a record is missing, damaged or of another schema."""


class CheckpointError(VlaError):
    """A checkpoint is missing, of another shape or made for something else."""


class EnvError(VlaError):
    """A simulator is missing or was given something it cannot run."""


class TrainingError(VlaError):
    """A run went wrong in a way that must stop it."""


class RequestError(VlaError):
    """A message over the network is not what its reader can use."""


def closest(name: str, known: Iterable[str]) -> str:
    """`known` as one line for an error, led by the name the user most likely meant."""
    names = sorted(known)
    guess = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names) or "(none)"
    return f"did you mean {guess[0]!r}? Known: {listed}" if guess else f"known: {listed}"
