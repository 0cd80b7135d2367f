"""Who talks to whom in a collective: the replica groups of an HLO instruction as partition numbers.

Three spellings: lists `{{0,1},{2,3}}`, iota `[2,2]<=[4]` with an optional transpose, and axes of a mesh
`mesh['a'=2,'b'=2] {'b'}`, with the order of the devices if it is not 0, 1, 2, ...
"""

import math
import re

import numpy as np

from vla_jax.training.plan.hlo import Instruction

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:,\s*device_ids=\((.*?)\))?\s*\{([^}]*)\}")
_ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_CHOSEN = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def first_group(instruction: Instruction, num_partitions: int) -> tuple[int, ...]:
    """The partitions of one group; all groups of a collective look alike. No groups written: everyone."""
    text = instruction.attributes
    start = text.find("replica_groups=")
    if start < 0:
        pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text)
        return tuple(map(int, pairs.groups())) if pairs else tuple(range(num_partitions))
    text = text[start + len("replica_groups=") :]
    if text.startswith("mesh"):
        return _of_mesh(_MESH.match(text))
    if text.startswith("["):
        return _of_iota(_IOTA.match(text))
    inner = re.match(r"\{\{([\d,\s]*)\}", text)
    return tuple(_ints(inner.group(1))) if inner else tuple(range(num_partitions))


def _of_iota(found: re.Match) -> tuple[int, ...]:
    shape, reshape, transpose = (_ints(part) if part else None for part in found.groups())
    ids = np.arange(math.prod(reshape)).reshape(reshape)
    ids = ids if transpose is None else ids.transpose(transpose)
    return tuple(int(each) for each in ids.reshape(shape)[0])


def _of_mesh(found: re.Match) -> tuple[int, ...]:
    axes = [(name, int(size)) for name, size in _AXIS.findall(found.group(1))]
    ids = np.arange(math.prod(size for _, size in axes))
    order = _ORDER.match(found.group(2)) if found.group(2) else None
    if order:
        transpose = _ints(order.group(2)) if order.group(2) else range(len(_ints(order.group(1))))
        ids = ids.reshape(_ints(order.group(1))).transpose(transpose).reshape(-1)
    elif found.group(2):
        ids = np.array(_ints(found.group(2)))
    ids = ids.reshape([size for _, size in axes])
    index: list = [0] * len(axes)
    names = [name for name, _ in axes]
    chosen = _CHOSEN.findall(found.group(3))
    if any(part for _, part, _ in chosen):  # a part of an axis: split it into (before, part, after)
        return _of_parts(ids, axes, chosen)
    for name, _, _ in chosen:
        index[names.index(name)] = slice(None)
    return tuple(int(each) for each in np.asarray(ids[tuple(index)]).reshape(-1))


def _of_parts(ids: np.ndarray, axes: list[tuple[str, int]], chosen: list[tuple[str, str, str]]) -> tuple[int, ...]:
    wanted = {name: (int(before or 1), int(size) if size else None) for name, before, size in chosen}
    shape, index = [], []
    for name, size in axes:
        if name not in wanted:
            shape, index = [*shape, size], [*index, 0]
            continue
        before, part = wanted[name]
        part = size if part is None else part
        shape, index = [*shape, before, part, size // before // part], [*index, 0, slice(None), 0]
    return tuple(int(each) for each in ids.reshape(shape)[tuple(index)].reshape(-1))


def _ints(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
