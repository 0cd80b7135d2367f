"""What importing vla_jax does to a process, seen from a fresh one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp

from vla_jax.core import runtime

CODE = "{first}; import vla_jax, os; print(os.environ.get('XLA_FLAGS', ''))"


def run(first="pass", **environment):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environment
    code = CODE.format(first=first)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


def needs_flags():
    import jaxlib

    return tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 12)


def test_a_jaxlib_that_needs_flags_gets_them_and_no_other_does():
    flags = run().stdout
    assert ("fusion_emitters=false" in flags) == needs_flags()
    assert ("concurrency_optimized_scheduler=false" in flags) == needs_flags()


def test_what_the_user_set_is_kept():
    flags = run(XLA_FLAGS="--xla_cpu_use_fusion_emitters=true").stdout
    assert "fusion_emitters=true" in flags and "fusion_emitters=false" not in flags


def test_programs_without_simulation_are_compiled_with_other_kernels():
    """The option reaches the compiler, and only where the flag was set."""
    options = runtime.kernel_options("cpu")
    assert bool(options) == needs_flags() and runtime.kernel_options("gpu", side_by_side=True) == {}
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
    assert ("Import vla_jax first" in late) == needs_flags()
