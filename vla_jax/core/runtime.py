"""Process-wide settings that must be right before JAX compiles anything."""

import os
import warnings
from importlib import metadata
from pathlib import Path

_FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
_COMPILE_CACHE = "VLA_JAX_COMPILE_CACHE"


def avoid_slow_cpu_kernels() -> None:
    """Turn off the CPU fusion emitters of jaxlib 0.7 to 0.11, which make batched MJX kinematics 1,000 times slower.

    Measured at batch 32: 1.1 s per call with them, 1.6 ms without; jaxlib 0.12 is fast either way. XLA reads the flag
    when it makes its first CPU client, so importing `vla_jax` before the first computation is enough. A value the user
    set is left alone.
    """
    version = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])
    flags = os.environ.get("XLA_FLAGS", "")
    if not (0, 7) <= version < (0, 12) or _FUSION_EMITTERS in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} --{_FUSION_EMITTERS}=false".strip()
    if _backend_is_live():
        warnings.warn(
            f"JAX computed something before vla_jax was imported, so jaxlib {metadata.version('jaxlib')} keeps its "
            f"slow CPU kernels: MJX simulation may be 1,000 times slower. Import vla_jax first, or set "
            f"XLA_FLAGS=--{_FUSION_EMITTERS}=false.",
            stacklevel=3,
        )


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


def _backend_is_live() -> bool:
    import sys

    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(bridge is not None and getattr(bridge, "_backends", None))
