"""Eight virtual CPU devices, so that sharded paths run in every test run, programs that compile fast rather than run
fast, and no silent broadcasting."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all the suite's time is compilation, which this halves (441 s -> 210 s for test_pa_rl and test_suites, a core
# each), for processes that tests start too. Set it to 0 to test the programs that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import pytest

from vla_jax.core import runtime  # importing vla_jax sets the CPU flags that jax reads when it first computes

jax.config.update("jax_numpy_rank_promotion", "raise")
runtime.enable_compile_cache()
hypothesis.settings.register_profile("suite", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("suite")

_MAPS, _MANY_MAPS = Path("/proc/self/maps"), 30_000


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Forgets compiled programs where there are many: each has memory maps of its own, of which Linux allows a process
    65,530 (`vm.max_map_count`). At that number LLVM cannot allocate memory, and jaxlib ends with a segmentation fault.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY_MAPS:
        jax.clear_caches()
