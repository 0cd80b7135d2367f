"""One compilation in a process of its own: it may need virtual devices or the TPU compiler, and gives its memory back.

    python -m vla_jax.training.plan.worker REQUEST.json ANSWER.json

`compile_request` starts it. What it compiled is kept under a key of the lowered program, so that planning again
compiles nothing.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vla_jax.core import errors, files

CACHE = "runs/plan"
_ERROR = "error"
# The program is read, never run: machine code may be as slow as it likes. Its HLO is the same.
_NEVER_RUN = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
_TAIL = 2000  # characters of a worker's stderr in an error


@dataclasses.dataclass(frozen=True)
class Request:
    """`program` is a recipe as `plain.to_plain` writes it, or {"reference": name} of `reference.py`."""

    program: Mapping[str, Any]
    batch_size: int
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    topology: str
    compiler: str  # "tpu" or "cpu"
    cache: str = CACHE
    acting: str | None = None  # the form of the weights, to plan acting in place of a train step


def compile_request(request: Request, timeout_s: float) -> dict[str, Any]:
    """The worker's answer: memory, operations, coordinates, seconds and the path of the HLO text.

    Raises ConfigError for what cannot be planned and TrainingError when the worker dies or takes longer.
    """
    with tempfile.TemporaryDirectory(prefix="vla_jax_plan_") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(dataclasses.asdict(request)), encoding="utf-8")
        command = [sys.executable, "-m", "vla_jax.training.plan.worker", str(asked), str(answered)]
        place = f"plan of {request.topology} with mesh {request.mesh}"
        try:
            done = subprocess.run(
                command, env=_environment(request), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise errors.TrainingError(
                place, expected=f"a compilation within {timeout_s:.0f} s", fix="give it more with --timeout"
            ) from None
        if not answered.is_file():
            raise errors.TrainingError(
                f"{place}: the compiling process ended with {done.returncode}", found=done.stderr[-_TAIL:]
            )
        answer = json.loads(answered.read_text(encoding="utf-8"))
    if _ERROR in answer:
        raise errors.ConfigError(**answer[_ERROR])
    return answer


def _environment(request: Request) -> dict[str, str]:
    environment = dict(os.environ, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="2")
    if request.compiler == "cpu":
        kept = [flag for flag in environment.get("XLA_FLAGS", "").split() if "device_count" not in flag]
        total = math.prod(map(int, request.topology.partition(":")[2].split("x")))
        count = f"--xla_force_host_platform_device_count={total}"
        environment["XLA_FLAGS"] = " ".join([*kept, count, *_NEVER_RUN])
    return environment


def main(arguments: list[str]) -> None:
    asked, answered = map(Path, arguments)
    request = Request(**json.loads(asked.read_text(encoding="utf-8")))
    try:
        answer = _answer(request)
    except errors.VlaError as error:
        texts = [line.split(maxsplit=1) for line in str(error).splitlines()[1:]]
        rows = {row[0]: row[1] for row in texts if len(row) == 2 and row[0] in ("expected", "found", "fix")}
        answer = {_ERROR: {"place": error.place, **rows}}
    files.write_text(answered, json.dumps(answer))


def _answer(request: Request) -> dict[str, Any]:
    import jax

    from vla_jax.training import sharding
    from vla_jax.training.plain import from_plain
    from vla_jax.training.plan import acting, reference
    from vla_jax.training.plan import program as programs
    from vla_jax.training.plan.chips import parse_topology
    from vla_jax.training.recipe import Recipe

    topology = parse_topology(request.topology)
    devices = programs.tpu_devices(topology) if request.compiler == "tpu" else jax.devices()
    mesh = sharding.make_mesh(sharding.MeshConfig(*request.mesh), devices)
    if "reference" in request.program:
        program = reference.program(request.program["reference"], request.batch_size, mesh)
    elif request.acting is not None:
        program = acting.of_recipe(from_plain(Recipe, request.program), request.batch_size, request.acting)
    else:
        program = programs.of_recipe(from_plain(Recipe, request.program), request.batch_size)
    lowered = programs.lower(program, mesh)
    key = _key(lowered, request)
    folder = Path(request.cache) / key
    answer = {
        "name": program.name,
        "num_train_steps": program.num_train_steps,
        "model_flops": program.model_flops(),
        "passes": program.passes,
        "step_flops": lowered.step_flops,
        "kernels": lowered.kernels,
        "kernel_idle": max(1.0, topology.chip.matrix_unit / (program.kernel_width or topology.chip.matrix_unit)),
        "state": lowered.state_bytes,
        "coordinates": lowered.coordinates,
        "lower_seconds": lowered.seconds,
        "hlo": str(folder / "module.hlo"),
        "versions": _versions(),
    }
    if not (folder / "compiled.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        compiled = programs.compile_lowered(lowered)
        if compiled.hlo is not None:
            files.write_text(folder / "module.hlo", compiled.hlo)
        files.write_text(folder / "compiled.json", json.dumps(compiled.facts))
    return answer | json.loads((folder / "compiled.json").read_text(encoding="utf-8"))


def _key(lowered: Any, request: Request) -> str:
    parts = [lowered.text, request.topology, request.compiler, str(request.mesh), json.dumps(_versions())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    names = [name for name in ("jax", "jaxlib", "libtpu", "flax", "optax") if _installed(name)]
    return {name: metadata.version(name) for name in names}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
