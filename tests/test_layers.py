"""Imports point down the table of docs/architecture.md; pyproject.toml holds the contracts."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_no_room_imports_from_above():
    linter = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_nothing_of_ours_imports_torch_or_tensorflow():
    code = "import sys, vla_jax.cli, vla_jax.experiment, scripts.demo; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = found.stdout
    assert "'torch'" not in modules and "'tensorflow'" not in modules
    assert "vla_jax.training.fit" in modules
