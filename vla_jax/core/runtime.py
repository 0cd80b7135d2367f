"""Process-wide settings that must be right before JAX compiles anything."""

import os
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

# Defaults of jaxlib's CPU back end that MJX cannot live with, both measured on jaxlib 0.10.2 with two cores, and the
# first jaxlib that is repaired or does not know the flag, which ends the process then. Fused kernel emitters take 1.1 s
# for vmapped kinematics at batch 32, the older ones 1.6 ms; the concurrent scheduler of thunks hangs for ever in the
# first or second long rollout, the plain one ran 25 of 25.
_CPU_FLAGS = {
    "xla_cpu_use_fusion_emitters": (0, 11, 1),
    "xla_cpu_enable_concurrency_optimized_scheduler": (0, 12),
}
_SIDE_BY_SIDE = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED",
    "xla_cpu_experimental_ynn_fusion_type": "",  # none of the library that splits all it does over every core
}
_COMPILE_CACHE = "VLA_JAX_COMPILE_CACHE"


def missing_cpu_flags() -> list[str]:
    """The XLA flags this jaxlib needs on a CPU and the environment does not mention; later jaxlibs need none."""
    flags = os.environ.get("XLA_FLAGS", "")
    needed = [name for name, repaired in _CPU_FLAGS.items() if _jaxlib_version() < repaired]
    return [f"--{name}=false" for name in needed if name not in flags]


def avoid_broken_cpu_defaults() -> None:
    """Set the flags without which MJX is slow or hangs on the CPU; flags the user set are left alone.

    XLA reads them when it makes its first CPU client, so importing `vla_jax` before the first computation is enough.
    """
    missing = missing_cpu_flags()
    if not missing:
        return
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *missing]).strip()
    if _backend_is_live():
        warnings.warn(
            f"JAX computed something before vla_jax was imported, so jaxlib {metadata.version('jaxlib')} keeps CPU "
            f"defaults with which MJX simulation is slow or hangs. Import vla_jax first, or set "
            f'XLA_FLAGS="{" ".join(missing)}".',
            stacklevel=3,
        )


def kernel_options(platform: str, *, side_by_side: bool = False) -> dict[str, Any]:
    """`jax.jit`'s compiler_options for a program that simulates nothing; empty off CPUs.

    It gets JAX's own kernels instead of those MJX needs, which are faster for updates and for sampling. With
    `side_by_side` what does not wait for each other runs at the same time, a core each, by kernels that leave the
    other cores alone (`placement.pays_side_by_side`).
    """
    if platform != "cpu":
        return {}
    emitters = "xla_cpu_use_fusion_emitters"
    kernels = {emitters: True} if _jaxlib_version() < _CPU_FLAGS[emitters] else {}
    return kernels | (_SIDE_BY_SIDE if side_by_side else {})


def num_cores() -> int:
    """Of the CPU, as many as this process may run on: what XLA splits an operation over."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def enable_compile_cache(folder: str | Path | None = None) -> Path:
    """Keep compiled programs on disk (a cold 13 s compile loads in 0.5 s) and return the folder.

    The folder is, in this order: the argument, `$VLA_JAX_COMPILE_CACHE`, `$XDG_CACHE_HOME` or `~/.cache`.
    """
    import jax  # imported late: this module runs before jax on package import

    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vla_jax" / "xla"
    path = Path(folder or os.environ.get(_COMPILE_CACHE) or default)
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def _jaxlib_version() -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version("jaxlib").split(".")[:3])


def _backend_is_live() -> bool:
    import sys

    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(bridge is not None and getattr(bridge, "_backends", None))
