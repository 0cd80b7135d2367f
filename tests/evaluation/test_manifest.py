import dataclasses
import enum
import json
import subprocess

import jax.numpy as jnp
import numpy as np

from vla_jax.evaluation import manifest


class Mode(enum.Enum):
    FAST = 1


@dataclasses.dataclass(frozen=True)
class Optimizer:
    peak_lr: float = 3e-4


@dataclasses.dataclass(frozen=True)
class Recipe:
    optimizer: Optimizer = Optimizer()
    cameras: tuple[str, ...] = ("front", "wrist")
    mode: Mode = Mode.FAST
    make: object = len


def test_the_manifest_is_json_and_says_what_a_rerun_needs():
    found = json.loads(json.dumps(manifest.manifest(seeds=[3], recipe=Recipe(), renderer="rays")))
    assert found["seeds"] == [3] and found["renderer"] == "rays"
    assert found["device"]["backend"] == "cpu" and found["device"]["count"] == 8
    assert found["packages"]["jax"].startswith("0.")
    assert "xla_force_host_platform_device_count" in found["environment"]["XLA_FLAGS"]
    assert found["time"].endswith("+00:00")
    assert found["recipe"]["optimizer"] == {"type": "Optimizer", "peak_lr": 3e-4}
    assert found["recipe"]["cameras"] == ["front", "wrist"]
    assert found["recipe"]["mode"] == "FAST"
    assert found["recipe"]["make"] == "builtins.len"


def test_arrays_and_sets_become_lists():
    value = {"a": jnp.arange(2), "b": np.float32(0.5), 3: {"y", "x"}}
    assert manifest.plain(value) == {"a": [0, 1], "b": 0.5, "3": ["x", "y"]}


def test_a_package_that_is_not_installed_has_no_version():
    assert manifest.package_version("no-such-package-here") is None


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_changed_file_makes_the_repository_dirty(tmp_path):
    git(tmp_path, "init")
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "a.py").write_text("1")
    assert manifest.git_state(folder) == {"commit": None, "dirty": None}  # the folder is not tracked
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = manifest.git_state(folder)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (folder / "a.py").write_text("2")
    assert manifest.git_state(folder) == {**clean, "dirty": True}


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest.git_state(tmp_path) == {"commit": None, "dirty": None}
