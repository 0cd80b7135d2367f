"""What one device does in one step, read from the optimized HLO: products, traffic, collectives, times trip counts.

A region is a computation that runs in sequence: the entry, or the body of a loop. `Cost` lists them with how often each
runs, because overlap is a question within a region.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from vla_jax.training.plan.groups import first_group
from vla_jax.training.plan.hlo import Computation, Instruction, Module, Shape
from vla_jax.training.plan.products import operations

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "copy-done", "slice-done", "while", "conditional", "call", "async-update",
}  # fmt: skip
_FREE_CALLS = ("AsyncCollective", "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_COPIES = ("copy-start", "slice-start")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Work:
    """One instruction that computes."""

    name: str
    flops: float
    bytes: float  # of main memory, read and written
    cycles: float = 0.0  # the compiler's own estimate; 0: it gave none
    idle: float = 1.0  # how many times longer its products take because they fill a part of the matrix unit


@dataclasses.dataclass(frozen=True)
class Collective:
    name: str
    kind: str
    bytes: float  # of the whole array on one device: gathered, before scattering, reduced, exchanged or sent
    group: tuple[int, ...]
    is_async: bool  # the compiler starts it and waits for it later
    source: str = ""  # the op_name it stems from


@dataclasses.dataclass(frozen=True)
class Region:
    name: str
    times: float
    work: tuple[Work, ...]
    copied_bytes: float  # moved between main memory and the chip's own while others compute
    collectives: tuple[Collective, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one device and one step."""

    regions: tuple[Region, ...]

    @cached_property
    def flops(self) -> float:
        return sum(region.times * sum(work.flops for work in region.work) for region in self.regions)

    @cached_property
    def bytes(self) -> float:
        return sum(
            region.times * (region.copied_bytes + sum(work.bytes for work in region.work)) for region in self.regions
        )

    @cached_property
    def cycles(self) -> float:
        return sum(region.times * sum(work.cycles for work in region.work) for region in self.regions)

    def collectives(self) -> Iterator[tuple[float, Collective]]:
        """Each with how often it runs."""
        return ((region.times, each) for region in self.regions for each in region.collectives)


def analyze(
    module: Module, num_partitions: int, kernels: Mapping[str, float] | None = None, kernel_idle: float = 1.0
) -> Cost:
    """Walk the module from its entry through loops and calls.

    `kernels` are the operations of one call of each Pallas kernel, which the module does not show, and `kernel_idle`
    what `Work.idle` is for them.
    """
    walk = _Walk(module, num_partitions, kernels or {}, kernel_idle)
    walk.visit(module.entry, 1.0)
    return Cost(tuple(walk.regions))


def as_fused_accelerator(cost: Cost, state_bytes: float) -> Cost:
    """A CPU compiler's cost as a stand-in for a GPU's, which fuses elementwise work and overlaps its collectives.

    Kept are the products with their traffic, the state read and written once, and every collective, now asynchronous.
    """
    regions = [
        dataclasses.replace(
            region,
            work=tuple(work for work in region.work if work.flops > 0),
            collectives=tuple(dataclasses.replace(each, is_async=True) for each in region.collectives),
        )
        for region in cost.regions
    ]
    return Cost((*regions, Region("state", 1.0, (Work("state", 0.0, 2 * state_bytes),), 0.0, ())))


class _Walk:
    def __init__(self, module: Module, num_partitions: int, kernels: Mapping[str, float], kernel_idle: float):
        self.module, self.num_partitions = module, num_partitions
        self.kernels, self.kernel_idle = kernels, kernel_idle
        self.regions: list[Region] = []
        self.seen: set[str] = set()  # channels: a TPU repeats an asynchronous collective in the fusions that hide it

    def visit(self, name: str, times: float) -> None:
        computation = self.module.computations[name]
        work, copied, collectives = [], 0.0, []
        for instruction in computation.instructions:
            opcode = instruction.opcode
            if opcode == "while":
                self.visit(instruction.called("body"), times * self._trips(instruction))
            elif opcode == "conditional":
                branches = re.findall(r"%([\w.\-]+)", instruction.attribute("branch_computations") or "")
                branches = branches or [instruction.called(f"{side}_computation") for side in ("true", "false")]
                self.visit(branches[0], times)
            elif opcode == "call":
                self.visit(instruction.called("to_apply"), times)
            elif opcode in _COPIES:
                copied += _copied(instruction)
            elif (kind := _kind(opcode)) is not None:
                if opcode.endswith("-done"):
                    continue
                collectives += self._collective(instruction, computation, kind, opcode.endswith("-start"))
            elif opcode not in _FREE and not _is_free_call(instruction):
                collectives += self._inside(instruction)
                work.append(self._work(instruction, computation))
        self.regions.append(Region(name, times, tuple(work), copied, tuple(collectives)))

    def _trips(self, loop: Instruction) -> int:
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known.group(1))
        # `i < n` from 0 in steps of one, as `lax.scan` writes it, or of more, where the compiler unrolled.
        condition = self.module.computations[loop.called("condition")]
        constants = [each.operands[0] for each in condition.instructions if each.opcode == "constant"]
        limit = max((int(value) for value in constants if value.isdigit()), default=1)
        counters = [each.attribute("index") for each in condition.instructions if each.opcode == "get-tuple-element"]
        step = self._step(self.module.computations[loop.called("body")], counters[0]) if counters else 1
        return math.ceil(limit / step)

    def _step(self, body: Computation, counter: str) -> int:
        """How far one trip moves element `counter` of the loop's tuple."""
        if body.root.opcode != "tuple":
            return 1
        end = body.by_name[body.root.operands[int(counter)]]
        while end.opcode in ("copy", "bitcast"):
            end = body.by_name[end.operands[0]]
        parts = [body.by_name[name] for name in end.operands] if end.opcode == "add" else []
        steps = [int(part.operands[0]) for part in parts if part.opcode == "constant" and part.operands[0].isdigit()]
        return steps[0] if steps and steps[0] > 0 else 1

    def _inside(self, instruction: Instruction) -> list[Collective]:
        """Collectives that a TPU put into a fusion, to run while the fusion computes."""
        name = instruction.called("calls")
        if name is None:
            return []
        computation, found = self.module.computations[name], []
        for each in computation.instructions:
            kind = _kind(each.opcode)
            if kind is not None and not each.opcode.endswith("-done"):
                found += self._collective(each, computation, kind, True)
            elif each.opcode in ("fusion", "call"):
                found += self._inside(each)
        return found

    def _collective(self, instruction: Instruction, computation: Computation, kind: str, is_async: bool):
        channel = instruction.attribute("channel_id") or instruction.name
        if channel in self.seen:
            return []
        self.seen.add(channel)
        results = sum(shape.bytes for shape in instruction.shapes)
        operands = sum(shape.bytes for name in instruction.operands for shape in computation.by_name[name].shapes)
        size = {"all-gather": max(results, operands), "reduce-scatter": max(results, operands)}.get(kind, operands)
        if instruction.opcode.endswith("-start") and kind == "all-gather":
            size = results - operands  # its result carries the operand along
        source = re.search(r'op_name="([^"]*)"', instruction.attributes)
        is_async = is_async or "async_collective_name" in instruction.attributes
        group = first_group(instruction, self.num_partitions)
        return [Collective(instruction.name, kind, size, group, is_async, source.group(1) if source else "")]

    def _work(self, instruction: Instruction, computation: Computation) -> Work:
        cycles = _CYCLES.search(instruction.attributes)
        return Work(
            instruction.name,
            self._flops(instruction, computation),
            self._bytes(instruction, computation),
            float(cycles.group(1)) if cycles else 0.0,
            self.kernel_idle if _kernel_name(instruction) in self.kernels else 1.0,
        )

    def _flops(self, instruction: Instruction, computation: Computation) -> float:
        name = instruction.called("calls")
        if name is None:
            if instruction.opcode == "custom-call":
                return self.kernels.get(_kernel_name(instruction), 0.0)
            return operations(instruction, computation)
        inner = self.module.computations[name]
        return sum(self._flops(each, inner) for each in inner.instructions)

    def _bytes(self, instruction: Instruction, computation: Computation) -> float:
        """Operands and results in main memory; of an array that is only sliced, the slice."""
        operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
        name = instruction.called("calls")
        inner = self.module.computations[name] if name else None
        if inner is None:
            if instruction.opcode in ("dynamic-slice", "gather", "slice"):
                return 2 * sum(shape.main_bytes for shape in instruction.shapes)
            if instruction.opcode in ("dynamic-update-slice", "scatter"):
                update = operands[1 if instruction.opcode == "dynamic-update-slice" else -1]
                return 2 * sum(shape.main_bytes for shape in update.shapes)
            read = sum(shape.main_bytes for operand in operands for shape in operand.shapes)
            return read + sum(shape.main_bytes for shape in instruction.shapes)
        read = 0.0
        for parameter, operand in zip(inner.parameters, operands, strict=False):
            whole = sum(shape.main_bytes for shape in operand.shapes)
            read += self._read_bytes(inner, parameter.name, whole) if whole else 0.0
        return read + self._written_bytes(inner, instruction)

    def _read_bytes(self, inner: Computation, name: str, whole: float) -> float:
        """What a fusion reads of one operand: slices where it only slices it, also in fusions inside."""
        total = 0.0
        for user in inner.users.get(name, []):
            if user.opcode in ("dynamic-slice", "gather", "slice"):
                total += sum(shape.bytes for shape in user.shapes)
            elif user.opcode in ("bitcast", "get-tuple-element"):
                total += self._read_bytes(inner, user.name, whole)
            elif user.opcode == "fusion" and user.called("calls"):
                nested = self.module.computations[user.called("calls")]
                places = [place for place, operand in enumerate(user.operands) if operand == name]
                total += sum(self._read_bytes(nested, nested.parameters[place].name, whole) for place in places)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # updated in place
            elif user.is_root and user.opcode == "tuple":
                continue  # handed through
            else:
                return whole
        return min(whole, total)

    def _written_bytes(self, inner: Computation, instruction: Instruction) -> float:
        """A fusion that ends in an update of a slice writes the slice; what it hands through it does not write."""
        root = inner.root
        ends = [inner.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]
        if len(ends) != len(instruction.shapes):
            return sum(shape.main_bytes for shape in instruction.shapes)
        return sum(self._end_bytes(inner, end, shape) for end, shape in zip(ends, instruction.shapes, strict=True))

    def _end_bytes(self, inner: Computation, end: Instruction, shape: Shape) -> float:
        while end.opcode == "bitcast":
            end = inner.by_name[end.operands[0]]
        if end.opcode == "parameter" or shape.space != 0:
            return 0.0
        if end.opcode == "dynamic-update-slice":
            return sum(part.bytes for part in inner.by_name[end.operands[1]].shapes)
        if end.opcode == "fusion" and end.called("calls") and len(end.shapes) == 1:
            nested = self.module.computations[end.called("calls")]
            return min(shape.main_bytes, self._end_bytes(nested, nested.root, shape))
        return shape.main_bytes


def _copied(instruction: Instruction) -> float:
    """`copy-start` and `slice-start` give (destination, source, context) or the like; the smaller side moves."""
    arrays = [shape for shape in instruction.shapes if shape.dims]
    moved = min((shape.bytes for shape in arrays), default=0.0)
    return moved * sum(shape.space == 0 for shape in arrays[:2])


def _kernel_name(instruction: Instruction) -> str:
    return re.sub(r"\.\d+$", "", instruction.name) if instruction.opcode == "custom-call" else ""


def _is_free_call(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and any(name in instruction.attributes for name in _FREE_CALLS)


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start").removesuffix("-done")
    return base if base in COLLECTIVES else None
