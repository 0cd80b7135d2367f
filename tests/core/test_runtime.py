"""What importing vla_jax does to a process, seen from a fresh one."""

import os
import subprocess
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import pytest
from packaging.version import Version

from vla_jax.core import runtime

CODE = "{first}; import vla_jax, os; print(os.environ.get('XLA_FLAGS', ''))"


def run(first="pass", **environment):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environment
    code = CODE.format(first=first)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


def is_before(*version):
    return Version(metadata.version("jaxlib")) < Version(".".join(map(str, version)))


def test_a_jaxlib_that_needs_flags_gets_them_and_no_other_does():
    flags = run().stdout
    assert ("fusion_emitters=false" in flags) == is_before(0, 11, 1)
    assert ("concurrency_optimized_scheduler=false" in flags) == is_before(0, 12)


@pytest.mark.parametrize(
    ("version", "flags", "options"),
    [("0.10.2", 2, 1), ("0.11.0", 2, 1), ("0.11.1", 1, 0), ("0.11.2", 1, 0), ("0.12.0", 0, 0), ("0.12.0.1", 0, 0)],
)
def test_no_jaxlib_is_given_a_flag_that_it_does_not_know(monkeypatch, version, flags, options):
    """An unknown flag ends the process: 0.11.1 dropped that of the emitters."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(runtime.metadata, "version", lambda package: version)
    assert len(runtime.missing_cpu_flags()) == flags
    assert len(runtime.kernel_options("cpu")) == options


def test_what_the_user_set_is_kept():
    flags = run(XLA_FLAGS="--xla_cpu_use_fusion_emitters=true").stdout
    assert "fusion_emitters=true" in flags and "fusion_emitters=false" not in flags


def test_programs_without_simulation_are_compiled_with_other_kernels():
    """The option reaches the compiler, and only where the flag was set."""
    options = runtime.kernel_options("cpu")
    assert bool(options) == is_before(0, 11, 1) and runtime.kernel_options("gpu", side_by_side=True) == {}
    assert float(jax.jit(lambda x: x + 1, compiler_options=options)(1.0)) == 2.0


def test_networks_side_by_side_are_compiled_with_another_schedule():
    """Later products wait for nothing but their own: the compiler may not let them share the memory of earlier ones."""

    def products(x):
        return [jnp.tanh(jnp.tanh(x * i @ x) @ x).sum() for i in range(4)]

    def temporary_bytes(**wanted):
        options = runtime.kernel_options("cpu", **wanted)
        compiled = jax.jit(products, compiler_options=options).lower(jnp.ones((64, 64))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(side_by_side=True) > temporary_bytes()


def test_too_late_an_import_is_said():
    late = run("import jax; jax.numpy.zeros(1).block_until_ready()").stderr
    assert ("Import vla_jax first" in late) == is_before(0, 12)
