"""Reads the text of an optimized HLO module: computations, instructions, shapes with their memory space.

Only what `cost.py` asks for. The grammar is the one XLA prints for TPU, GPU and CPU; what it does not know stays in
`Instruction.attributes` as text.
"""

import dataclasses
import math
import re
from functools import cached_property

_ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array. `space` is 0 in the main memory of the device (HBM); a TPU has others on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        if self.dtype.startswith("f8"):
            return math.prod(self.dims)
        return math.prod(self.dims) * _ITEM_BYTES.get(self.dtype, 0)

    @property
    def main_bytes(self) -> float:
        """Of main memory."""
        return self.bytes if self.space == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result; a tuple has several
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str | None:
        """The text of `name=value`, up to the comma that ends it; braces stay together."""
        found = re.search(rf"(?:^|[\s,]){name}=(\{{[^{{}}]*\}}|[^,\s]+)", self.attributes)
        return found.group(1) if found else None

    def called(self, name: str) -> str | None:
        value = self.attribute(name)
        return value.lstrip("%") if value else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        return next(each for each in reversed(self.instructions) if each.is_root)

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In order of their number."""
        found = [each for each in self.instructions if each.opcode == "parameter"]
        return tuple(sorted(found, key=lambda each: int(each.operands[0])))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Raises ValueError when the text has no entry computation."""
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        if name is None:
            header = _HEADER.match(line)
            if header:
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
        elif line == "}":
            instructions = [_instruction(_COMMENT.sub("", each).strip()) for each in lines if " = " in each]
            computations[name] = Computation(name, tuple(instructions))
            name = None
        elif line.startswith("  "):
            lines.append(line)
        elif lines:
            lines[-1] += line  # an attribute that holds line breaks
    if entry is None:
        raise ValueError("no ENTRY computation in the HLO text")
    return Module(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a printed type, nested tuples flat."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(found)


def _instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    start = opcode.end() - 1
    stop = _closing(rest, start)
    inside, attributes = rest[start + 1 : stop], rest[stop + 1 :].lstrip(", ")
    # A parameter's number and a constant's value stand where operands do.
    operands = _NAME.findall(inside) if opcode.group(1) not in ("parameter", "constant") else [inside]
    return Instruction(name.lstrip("%"), opcode.group(1), shapes(rest[:end]), tuple(operands), attributes, is_root)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
