import pytest

from vla_jax.core import errors
from vla_jax.training.plan import chips
from vla_jax.training.plan.cost import Collective, Cost, Region, Work, as_fused_accelerator
from vla_jax.training.plan.roofline import Efficiency, collective_time, step_time

IDEAL = Efficiency(1.0, 1.0, 1.0)
V5E = chips.parse_topology("v5e:16x16")
GRID = [(x, y, 0) for x in range(16) for y in range(16)]


def gather(size, group, kind="all-gather", is_async=True):
    return Collective("c", kind, size, group, is_async)


def test_topologies_know_their_rings():
    assert V5E.num_chips == 256
    assert (V5E.links((0,)), V5E.links((0, 1))) == (2, 4)
    assert chips.parse_topology("v5e:4x4").links((0, 1)) == 2  # lines: four chips of a v5e do not close
    assert chips.parse_topology("v5p:4x4x4").links((0, 1, 2)) == 6
    assert chips.parse_topology("h100:8").links(()) == 1


@pytest.mark.parametrize("text", ["v5f:4x4", "v5e:16", "v5e:4x4x4", "v5e", "h100:2x4", "v5e:0x4"])
def test_topologies_that_are_none_are_refused(text):
    with pytest.raises(errors.ConfigError, match="--topology"):
        chips.parse_topology(text)


@pytest.mark.parametrize(("kind", "passes"), [("all-gather", 1), ("reduce-scatter", 1), ("all-reduce", 2)])
def test_a_ring_moves_all_but_its_own_part(kind, passes):
    size, row = 1e9, tuple(range(16))  # one row of the grid: partitions differ in y only
    expected = passes * size * 15 / 16 / (2 * 4.5e10)
    assert collective_time(gather(size, row, kind), V5E, GRID, IDEAL) == pytest.approx(expected)
    everyone = tuple(range(256))  # both dims: twice the links
    expected = passes * size * 255 / 256 / (4 * 4.5e10)
    assert collective_time(gather(size, everyone, kind), V5E, GRID, IDEAL) == pytest.approx(expected)


def test_a_permutation_uses_one_link_and_a_group_of_one_nothing():
    assert collective_time(gather(9e10, (0, 1), "collective-permute"), V5E, GRID, IDEAL) == pytest.approx(2.0)
    assert collective_time(gather(9e10, (3,)), V5E, GRID, IDEAL) == 0


def test_permutations_both_ways_round_share_no_link():
    way = [gather(3.6e9, (0, 1), "collective-permute")] * 2  # 0.16 s together
    back = [gather(3.6e9, (0, 15), "collective-permute")]
    alone = Cost((Region("ring", 1.0, (), 0.0, tuple(way)),))
    both = Cost((Region("ring", 1.0, (), 0.0, (*way, *back)),))
    assert step_time(alone, V5E, GRID, IDEAL).total == pytest.approx(0.16)
    assert step_time(both, V5E, GRID, IDEAL).total == pytest.approx(0.16)


def cost(link_seconds, is_async=True, flops=197e12, bytes_=0.0, times=3.0):
    size = link_seconds * 4 * 4.5e10 * 256 / 255
    collective = gather(size, tuple(range(256)), is_async=is_async)
    return Cost((Region("body", times, (Work("w", flops, bytes_),), 0.0, (collective,)),))


def test_asynchronous_links_hide_behind_the_work_of_their_region_and_no_further():
    hidden = step_time(cost(0.4), V5E, GRID, IDEAL)
    assert (hidden.total, hidden.exposed_links) == (pytest.approx(3.0), pytest.approx(0.0))
    half = step_time(cost(1.5), V5E, GRID, IDEAL)
    assert (half.total, half.exposed_links) == (pytest.approx(4.5), pytest.approx(1.5))
    blocking = step_time(cost(0.4, is_async=False), V5E, GRID, IDEAL)
    assert (blocking.total, blocking.exposed_links) == (pytest.approx(4.2), pytest.approx(1.2))


def test_an_instruction_takes_the_longer_of_products_and_memory():
    bound_by_memory = step_time(cost(0.0, bytes_=2 * 8.1e11), V5E, GRID, IDEAL)
    assert bound_by_memory.total == pytest.approx(6.0)
    assert bound_by_memory.compute == pytest.approx(3.0)


def test_products_that_fill_half_of_the_matrix_unit_take_twice_as_long():
    half = Cost((Region("body", 1.0, (Work("w", 197e12, 0.0, idle=2.0),), 0.0, ()),))
    assert step_time(half, V5E, GRID, IDEAL).total == pytest.approx(2.0)


def test_half_of_the_peak_takes_twice_as_long():
    assert step_time(cost(0.0), V5E, GRID, Efficiency(0.5, 1.0, 1.0)).total == pytest.approx(6.0)


def test_a_cpu_compilation_stands_in_for_a_fused_one():
    regions = (
        Region(
            "entry",
            1.0,
            (Work("dot", 1e12, 100.0), Work("add", 0.0, 1e15)),
            5.0,
            (gather(1.0, (0, 1), is_async=False),),
        ),
    )
    fused = as_fused_accelerator(Cost(regions), state_bytes=7.0)
    assert fused.bytes == 100.0 + 5.0 + 2 * 7.0
    assert all(each.is_async for _, each in fused.collectives())
