"""Step time of one device from its `Cost` and its `Topology`.

    instruction   max(idle * products / (matmul * peak), bytes / (hbm * bandwidth))
    region        max(sum of its instructions, all its bytes / (hbm * bandwidth), its asynchronous collectives)
                  + its other collectives
    step          sum over regions of times * region

The assumption about overlap: what the compiler starts and waits for later hides completely behind the work of its
region, up to that work; nothing hides anything else. Elementwise work on data that stays on the chip is free.

A collective over `n` chips of a grid moves `(n - 1) / n` of its array over all links of the grid dims that it spans
(ring algorithms, Scaling Book chapter 3): once to gather or scatter, twice to reduce everywhere, a quarter to exchange.
"""

import dataclasses
import math
from collections.abc import Sequence

from vla_jax.training.plan.chips import Topology
from vla_jax.training.plan.cost import Collective, Cost, Region

_PASSES = {"all-gather": 1.0, "reduce-scatter": 1.0, "all-reduce": 2.0, "all-to-all": 0.25, "ragged-all-to-all": 0.25}
Coordinates = Sequence[tuple[int, ...]]  # of every partition, in the order of the mesh


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Shares of the peaks that real programs reach; docs/scale.md says how well they predict."""

    matmul: float = 0.80
    hbm: float = 0.85
    links: float = 0.80


DEFAULT = Efficiency()


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step. `total` is not their sum: the first three overlap as the module says."""

    total: float
    compute: float  # products at the attainable peak
    hbm: float  # all traffic of main memory
    links: float  # all collectives
    exposed_links: float  # the part of `links` that nothing hides
    compiler: float | None  # the TPU compiler's own cycle estimates, without collectives: a second opinion


def step_time(cost: Cost, topology: Topology, coordinates: Coordinates, efficiency: Efficiency = DEFAULT) -> StepTime:
    """`coordinates` says where in the grid each partition is."""
    chip = topology.chip
    bandwidth = chip.hbm_bandwidth * efficiency.hbm
    peak = chip.bf16_flops * efficiency.matmul
    total = exposed = links = 0.0
    for region in cost.regions:
        working = _working(region, peak, bandwidth)
        seconds = {True: 0.0, False: 0.0}
        for collective in _in_turn(region):
            seconds[collective.is_async] += collective_time(collective, topology, coordinates, efficiency)
        hidden_behind = max(0.0, seconds[True] - working)
        total += region.times * (working + hidden_behind + seconds[False])
        exposed += region.times * (hidden_behind + seconds[False])
        links += region.times * sum(seconds.values())
    return StepTime(
        total=total,
        compute=cost.flops / peak,
        hbm=cost.bytes / bandwidth,
        links=links,
        exposed_links=exposed,
        compiler=cost.cycles / chip.clock if chip.clock and cost.cycles else None,
    )


def collective_time(
    collective: Collective, topology: Topology, coordinates: Coordinates, efficiency: Efficiency = DEFAULT
) -> float:
    """Seconds, alone on the links. A permutation sends its array over one link."""
    size = len(collective.group)
    if size < 2:
        return 0.0
    link = topology.chip.link_bandwidth * efficiency.links
    if collective.kind == "collective-permute":
        return collective.bytes / link
    places = [coordinates[partition] for partition in collective.group]
    spanned = tuple(dim for dim in range(len(places[0])) if len({place[dim] for place in places}) > 1)
    return _PASSES[collective.kind] * collective.bytes * (size - 1) / size / (link * max(1, topology.links(spanned)))


def _in_turn(region: Region) -> list[Collective]:
    """The collectives of a region that share links. Permutations the other way round use other links at the same time:
    of the two or more directions in a region the one that sends most counts."""
    permutations: dict[tuple[int, ...], list[Collective]] = {}
    for each in region.collectives:
        if each.kind == "collective-permute":
            permutations.setdefault(each.group, []).append(each)
    longest = max(permutations.values(), key=lambda group: sum(each.bytes for each in group), default=[])
    return [each for each in region.collectives if each.kind != "collective-permute"] + longest


def _working(region: Region, peak: float, bandwidth: float) -> float:
    in_order = math.fsum(max(work.idle * work.flops / peak, work.bytes / bandwidth) for work in region.work)
    traffic = region.copied_bytes + math.fsum(work.bytes for work in region.work)
    return max(in_order, traffic / bandwidth)
