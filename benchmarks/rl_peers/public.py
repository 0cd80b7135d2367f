"""The public agents importable on this JAX, their arithmetic as it stands.

`jax.tree_map`, which their code calls, is put back under its old name. Packages of theirs that import every agent at
once are entered past their `__init__`, and modules that are imported for logging or saving only are empty stand-ins.
Sources: ColinQiyangLi/dqc df898256, rail-berkeley/serl cd5f7e7c, MaxSobolMark/PolicyAgnosticRL a26a192a.
"""

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path

import jax

jax.tree_map = jax.tree.map


class _Absent(types.ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})  # for annotations


def absent(*names: str) -> None:
    """Stand-ins for modules that nothing measured here calls."""
    for name in names:
        sys.modules[name] = _Absent(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)  # JAX asks whether it is installed


def bare_package(name: str, folder: Path) -> None:
    """A package without what its `__init__` imports."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def dqc(clone: Path) -> types.ModuleType:
    """`agents.dqc` of the clone: DQCAgent, get_config."""
    sys.path.insert(0, str(clone))
    bare_package("agents", clone / "agents")
    return importlib.import_module("agents.dqc")


def serl(clone: Path) -> types.ModuleType:
    """`serl_launcher.agents.continuous.sac` of the clone: SACAgent."""
    root = clone / "serl_launcher" / "serl_launcher"
    sys.path.insert(0, str(root.parent))
    bare_package("serl_launcher.agents", root / "agents")
    absent("tensorflow")
    return importlib.import_module("serl_launcher.agents.continuous.sac")


def pa_rl(clone: Path, module: str) -> types.ModuleType:
    """`jaxrl_m.agents.continuous.<module>` of the clone."""
    sys.path.insert(0, str(clone))
    bare_package("jaxrl_m.agents", clone / "jaxrl_m" / "agents")
    absent("tensorflow", "jaxrl_m.agents.continuous.ddpm_bc")
    return importlib.import_module(f"jaxrl_m.agents.continuous.{module}")
