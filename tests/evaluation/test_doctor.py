import dataclasses
import io
import json

import pytest
import rich.console

from vla_jax.core import runtime
from vla_jax.evaluation import doctor


def by_name(checks):
    return {check.name: check for check in checks}


def test_every_check_has_a_status_and_a_fix_where_one_is_needed(tmp_path):
    checks = doctor.doctor(tmp_path / "not" / "there" / "yet")
    assert {check.status for check in checks} <= {"ok", "warn", "missing"}
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    for name in ("machine", "disk", "python", "devices", "CPU kernels", "packages", "renderer", "compile cache"):
        assert name in names
    assert all(check.fix for check in checks if check.status == "missing")
    assert not any("could not be checked" in check.detail for check in checks)
    json.dumps([dataclasses.asdict(check) for check in checks])


def test_the_cpu_kernels_are_right_once_vla_jax_is_imported():
    assert by_name(doctor.doctor())["CPU kernels"].status == "ok"


def test_a_jaxlib_that_needs_flags_it_did_not_get_is_told(monkeypatch):
    monkeypatch.setattr(runtime.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    (check,) = doctor._cpu_kernels()
    assert check.status == "warn" and "concurrency_optimized_scheduler=false" in check.fix
    assert "fusion" not in check.fix  # what the user set is left alone
    monkeypatch.setattr(runtime, "_backend_is_live", lambda: False)
    runtime.avoid_broken_cpu_defaults()
    assert next(iter(doctor._cpu_kernels())).status == "ok"


def test_packages_outside_the_tested_range_are_named(monkeypatch):
    requires = ["jax>=0.10,<0.13", "absent-thing>=1", "optional>=1; extra == 'x'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    versions = {"vla-jax": "0.1", "jax": "0.4.30"}
    monkeypatch.setattr(doctor, "package_version", versions.get)
    checks = by_name(doctor._packages())
    assert (checks["jax"].status, checks["jax"].fix) == ("warn", 'pip install "jax<0.13,>=0.10"')
    assert checks["absent-thing"].status == "missing"
    assert "optional" not in checks
    assert checks["packages"].detail.startswith("0 of 2")


@pytest.mark.parametrize(
    ("chosen", "loadable", "status", "fix"),
    [
        ("", {"libEGL.so.1", "libGL.so.1"}, "ok", ""),
        ("", set(), "warn", "apt-get install libegl1"),
        ("osmesa", {"libEGL.so.1", "libGL.so.1"}, "missing", "apt-get install libosmesa6"),
        ("egl", {"libEGL.so.1", "libOSMesa.so.8"}, "ok", ""),
    ],
)
def test_rendering_needs_the_library_that_was_chosen(monkeypatch, chosen, loadable, status, fix):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(doctor, "_loads", loadable.__contains__)
    monkeypatch.setenv("MUJOCO_GL", chosen)
    check = by_name(doctor._rendering())["off-screen OpenGL"]
    assert check.status == status and check.fix.startswith(fix) and bool(check.fix) == bool(fix)


def test_an_idle_accelerator_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "_idle_accelerator", lambda: ("NVIDIA GPU", "cuda13"))
    (check,) = doctor._devices()
    assert (check.status, check.fix) == ("warn", 'pip install "jax[cuda13]"')


def test_a_check_that_fails_is_a_warning_and_hides_no_other(monkeypatch):
    def broken():
        raise RuntimeError("driver mismatch")

    monkeypatch.setattr(doctor.jax, "devices", broken)
    checks = by_name(doctor.doctor())
    assert checks["devices"].status == "warn" and "driver mismatch" in checks["devices"].detail
    assert "compile cache" in checks


def test_the_table_prints_fixes_and_keeps_brackets():
    checks = [doctor.Check("extra brax", "missing", "brax [optional]", 'pip install "vla-jax[brax]"')]
    console = rich.console.Console(file=io.StringIO(), width=100)
    console.print(doctor.to_table(checks))
    text = console.file.getvalue()
    assert "missing" in text and "brax [optional]" in text and 'pip install "vla-jax[brax]"' in text
