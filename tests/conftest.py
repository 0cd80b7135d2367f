"""Eight virtual CPU devices, so that sharded paths run in every test run, and no silent broadcasting."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

from vla_jax.core import runtime  # importing vla_jax sets the CPU flags that jax reads when it first computes

jax.config.update("jax_numpy_rank_promotion", "raise")
runtime.enable_compile_cache()
hypothesis.settings.register_profile("suite", deadline=None)  # a loaded machine is no failure
hypothesis.settings.load_profile("suite")
