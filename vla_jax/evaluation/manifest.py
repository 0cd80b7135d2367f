"""What someone needs to rerun a number: code, versions, machine, seeds, recipe, command."""

import dataclasses
import datetime
import enum
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = (
    "vla-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "mujoco",
    "mujoco-mjx",
    "numpy",
)
# settings that change numbers or speed and that a rerun has to repeat
_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "MUJOCO_GL")
_GIT_SECONDS = 10.0


def manifest(*, seeds: Sequence[int] = (), recipe: Any = None, renderer: str | None = None) -> dict[str, Any]:
    """A JSON-able account of this process.

    `recipe` may be a dataclass; `renderer` names what drew the images. What cannot be known (no git, a package that is
    not installed) is None. Starts JAX's backend, because the device kind is part of it.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(Path(__file__).parent),
        "packages": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {
            "backend": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "cpu_count": os.cpu_count(),
        "host": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "renderer": renderer,
        "seeds": list(seeds),
        "recipe": plain(recipe),
    }


def package_version(name: str) -> str | None:
    """The installed version of a distribution, None when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any]:
    """`{"commit", "dirty"}` of the repository that tracks `folder`; both None outside of one, or without git.

    An installed package may lie below somebody else's repository, so the folder itself has to be tracked.
    """
    tracked = _git(folder, "ls-files")
    if not tracked:
        return {"commit": None, "dirty": None}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ":/")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def plain(value: Any) -> Any:
    """`value` as JSON types: a dataclass becomes a dict with its class name under "type", a function its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '?')}.{name}"
    return str(value)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one owned by another user
        return None
    return done.stdout.strip()
