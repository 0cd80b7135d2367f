"""Plans: what a recipe needs and how fast it would run, on one mesh or on the best of many."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vla_jax.core import errors
from vla_jax.learners.imitation import ImitationConfig
from vla_jax.training.plain import to_plain
from vla_jax.training.plan import hlo, worker
from vla_jax.training.plan.acting import Weights
from vla_jax.training.plan.chips import Topology, parse_topology
from vla_jax.training.plan.cost import Cost, analyze, as_fused_accelerator
from vla_jax.training.plan.roofline import DEFAULT, Efficiency, StepTime, collective_time, step_time
from vla_jax.training.recipe import Recipe

MARGIN = 0.08  # of the memory, kept free for the runtime and for what the compiler did not foresee
SECONDS_PER_DAY = 86_400
TIMEOUT_S = 3600.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device during a step. The first four are exact; activations and other temporaries, and the size of
    the program, are the compiler's; None where it gave up because they do not fit."""

    parameters: int
    optimizer: int
    averages: int
    batch: int
    temporary: int | None
    program: int | None

    @property
    def total(self) -> int | None:
        return None if self.temporary is None else sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind in one step, on one device."""

    kind: str
    count: float
    bytes: float  # of the whole arrays
    seconds: float  # alone on the links
    asynchronous: float  # share of the seconds that the compiler overlaps


@dataclasses.dataclass(frozen=True)
class Plan:
    name: str
    topology: str
    compiler: str
    mesh: tuple[int, int, int]  # data, fsdp, tensor
    batch_size: int
    microbatches: int
    memory: Memory
    hbm_bytes: float
    model_flops: float  # of a step, over all devices
    step_flops: float  # with recomputation, before the compiler
    compiled_flops: float | None  # all devices together
    compiled_bytes: float | None  # of main memory, one device
    collectives: tuple[Traffic, ...]
    time: StepTime | None
    num_train_steps: int
    efficiency: Efficiency
    versions: dict[str, str]
    seconds: tuple[float, float]  # to lower and to compile
    note: str = ""
    passes: int = 3  # of the model's products in `model_flops`: 1 where it acts

    @property
    def num_chips(self) -> int:
        data, fsdp, tensor = self.mesh
        return data * fsdp * tensor

    @property
    def fits(self) -> bool:
        """With `MARGIN` to spare."""
        return self.memory.total is not None and self.memory.total <= (1 - MARGIN) * self.hbm_bytes

    @property
    def utilization(self) -> float | None:
        """Model operations per second over the peak of all chips."""
        peak = self.num_chips * parse_topology(self.topology).chip.bf16_flops
        return self.model_flops / self.time.total / peak if self.time else None

    @property
    def samples_per_second(self) -> float | None:
        return self.batch_size / self.time.total if self.time else None

    def days(self, num_samples: float | None = None) -> float | None:
        """For a budget of samples; default: the recipe's steps."""
        samples = self.num_train_steps * self.batch_size if num_samples is None else num_samples
        return samples / self.samples_per_second / SECONDS_PER_DAY if self.time else None


def plan(
    recipe: Recipe | str,
    topology: Topology,
    mesh: tuple[int, int, int],
    *,
    batch_size: int | None = None,
    microbatches: int | None = None,
    compiler: str = "tpu",
    efficiency: Efficiency = DEFAULT,
    timeout_s: float = TIMEOUT_S,
    cache: str | Path = worker.CACHE,
    acting: Weights | None = None,
) -> Plan:
    """Plan a recipe, or a reference transformer by its name, for `mesh` = (data, fsdp, tensor) of `topology`.

    `compiler="tpu"` compiles with XLA's TPU compiler (extra `plan`); "cpu" with as many virtual CPU devices, whose
    memory and traffic are upper bounds, and takes any topology. `acting` plans one call of the recipe's policy, with
    weights in that form, in place of a train step. Raises ConfigError for what cannot be planned,
    TrainingError when compiling fails or takes longer than `timeout_s`.
    """
    if compiler == "tpu" and not topology.is_tpu:
        raise errors.ConfigError(
            f"no compiler for {topology.name} here", expected="a TPU topology", fix="--compiler cpu"
        )
    if isinstance(recipe, str):
        program, batch_size, microbatches = {"reference": recipe}, batch_size, 1
    else:
        if acting is None and not isinstance(recipe.learner, ImitationConfig):
            raise errors.ConfigError(
                f"recipe {recipe.name} cannot be planned",
                expected="a learner whose batches are demonstrations: ImitationConfig",
                found=type(recipe.learner).__name__,
            )
        recipe = _with_microbatches(recipe, microbatches)
        program, batch_size = to_plain(recipe), batch_size or recipe.data.batch_size
        microbatches = 1 if acting else recipe.learner.microbatches
    request = worker.Request(program, batch_size, mesh, topology.name, compiler, str(cache), acting)
    answer = worker.compile_request(request, timeout_s)
    memory = Memory(**answer["state"], temporary=answer.get("temporary"), program=answer.get("program"))
    cost, time, collectives = None, None, ()
    if "too_large" not in answer:
        module = hlo.parse(Path(answer["hlo"]).read_text(encoding="utf-8"))
        cost = analyze(module, topology.num_chips, answer["kernels"], answer["kernel_idle"])
        if compiler == "cpu":
            state = sum(answer["state"].values())
            cost = as_fused_accelerator(cost, state_bytes=state)
        coordinates = [tuple(each) for each in answer["coordinates"]]
        time = step_time(cost, topology, coordinates, efficiency)
        collectives = tuple(_traffic(cost, topology, coordinates, efficiency))
    return Plan(
        name=answer["name"],
        topology=topology.name,
        compiler=compiler,
        mesh=mesh,
        batch_size=batch_size,
        microbatches=microbatches,
        memory=memory,
        hbm_bytes=topology.chip.hbm_bytes,
        model_flops=answer["model_flops"],
        step_flops=answer["step_flops"],
        compiled_flops=cost.flops * topology.num_chips if cost else None,
        compiled_bytes=cost.bytes if cost else None,
        collectives=collectives,
        time=time,
        num_train_steps=answer["num_train_steps"],
        efficiency=efficiency,
        versions=answer["versions"],
        seconds=(answer["lower_seconds"], answer.get("compile_seconds", 0.0)),
        note=answer.get("too_large", ""),
        passes=answer["passes"],
    )


def candidates(num_chips: int, batch_size: int, tensor: Sequence[int] = (1,)) -> Iterator[tuple[int, int, int]]:
    """Meshes over all chips whose data * fsdp divides the batch, most sharded first."""
    for t in tensor:
        if num_chips % t:
            continue
        for data in range(1, num_chips // t + 1):
            fsdp = num_chips // t // data
            if data * fsdp * t == num_chips and batch_size % (data * fsdp) == 0:
                yield (data, fsdp, t)


def sweep(
    recipe: Recipe | str,
    topology: Topology,
    meshes: Sequence[tuple[int, int, int]],
    microbatches: Sequence[int] = (1,),
    *,
    done: Callable[[Plan], None] = lambda plan: None,
    **options: Any,
) -> list[Plan]:
    """Plans of every combination, best first: those that fit before the others, then by samples per second.

    `done` is called with each as it is made. Raises what `plan` raises.
    """
    plans = []
    for mesh, parts in itertools.product(meshes, microbatches):
        plans.append(plan(recipe, topology, mesh, microbatches=parts, **options))
        done(plans[-1])
    return sorted(plans, key=lambda each: (each.fits, each.samples_per_second or 0.0), reverse=True)


def _with_microbatches(recipe: Recipe, microbatches: int | None) -> Recipe:
    if microbatches is None:
        return recipe
    return dataclasses.replace(recipe, learner=dataclasses.replace(recipe.learner, microbatches=microbatches))


def _traffic(cost: Cost, topology: Topology, coordinates: Any, efficiency: Efficiency) -> Iterator[Traffic]:
    rows = [
        (each.kind, times, times * each.bytes, times * collective_time(each, topology, coordinates, efficiency), each)
        for times, each in cost.collectives()
        if len(each.group) > 1
    ]
    for kind in sorted({row[0] for row in rows}):
        ours = [row for row in rows if row[0] == kind]
        seconds = sum(row[3] for row in ours)
        hidden = sum(row[3] for row in ours if row[4].is_async)
        yield Traffic(
            kind, sum(r[1] for r in ours), sum(r[2] for r in ours), seconds, hidden / seconds if seconds else 0.0
        )
