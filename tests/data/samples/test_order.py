import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.core.errors import ConfigError
from vla_jax.data.samples.order import GlobalOrder

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=SEEDS, first_epoch=st.integers(0, 2**20))
def test_every_epoch_is_an_exact_permutation(size, seed, first_epoch):
    samples = GlobalOrder([size], seed)(first_epoch * size, (first_epoch + 3) * size)[1].reshape(3, size)
    np.testing.assert_array_equal(np.sort(samples, axis=1), np.broadcast_to(np.arange(size), (3, size)))


def test_epochs_and_seeds_have_orders_of_their_own():
    samples = GlobalOrder([100], 0)(0, 300)[1].reshape(3, 100)
    other = GlobalOrder([100], 1)(0, 300)[1].reshape(3, 100)
    assert len({tuple(order) for order in np.concatenate([samples, other])}) == 6


def test_twin_datasets_do_not_march_in_step():
    datasets, samples = GlobalOrder([50, 50], 0)(0, 100)
    assert samples[datasets == 0].tolist() != samples[datasets == 1].tolist()


def test_all_orders_of_four_samples_are_equally_likely():
    # 24 orders, 24,000 epochs: each has 1000 +- 31 of them. A network of too few rounds would miss some orders.
    orders = GlobalOrder([4], 5)(0, 4 * 24_000)[1].reshape(-1, 4)
    counts = [int((orders == order).all(axis=1).sum()) for order in itertools.permutations(range(4))]
    assert min(counts) > 1000 - 5 * 31 and max(counts) < 1000 + 5 * 31


def test_neighbours_in_the_set_are_not_neighbours_in_the_stream():
    # The distance between two independent uniform places in [0, 1) is 1/3 on average, standard error 0.24 / sqrt(n).
    samples = GlobalOrder([100_000], 2)(0, 100_000)[1]
    assert abs(np.abs(np.diff(samples)).mean() / 100_000 - 1 / 3) < 5 * 0.24 / 100_000**0.5
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 5 / 100_000**0.5


@settings(deadline=None, max_examples=40)
@given(data=st.data(), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=SEEDS)
def test_the_stream_does_not_depend_on_how_it_is_cut(data, sizes, seed):
    """Processes, threads and resumed runs ask for pieces: laid end to end they are the stream."""
    weights = data.draw(st.lists(st.floats(0.01, 10), min_size=len(sizes), max_size=len(sizes)))
    start, length = data.draw(st.integers(0, 10**12)), data.draw(st.integers(1, 200))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=5)))
    edges = [start, *(start + cut for cut in cuts), start + length]
    whole = GlobalOrder(sizes, seed, weights)(start, start + length)
    pieces = [GlobalOrder(sizes, seed, weights)(a, b) for a, b in itertools.pairwise(edges)]
    for stream, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        np.testing.assert_array_equal(stream, np.concatenate(parts))
    shuffled = np.random.default_rng(0).permutation(length)
    for stream, found in zip(whole, GlobalOrder(sizes, seed, weights).at(start + shuffled), strict=True):
        np.testing.assert_array_equal(stream[shuffled], found)


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), start=st.integers(0, 10**6))
def test_any_prefix_is_within_one_sample_of_the_shares(weights, start):
    order = GlobalOrder([7] * len(weights), 0, weights)
    datasets = order(0, 3000)[0]
    for number, share in enumerate(order.shares):
        given_so_far = np.cumsum(datasets == number)
        assert (np.abs(given_so_far - float(share) * np.arange(1, 3001)) < 1).all()
    late = order(start, start + 3000)[0]  # the difference of two prefixes
    for number, share in enumerate(order.shares):
        assert (np.abs(np.cumsum(late == number) - float(share) * np.arange(1, 3001)) < 2).all()


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((0.25, 0.75), ("1/4", "3/4")),
        ((0.1, 0.2, 0.7), ("1/10", "1/5", "7/10")),
        ((1 / 3, 1 / 3, 1 / 3), ("1/3", "1/3", "1/3")),
        ((3, 5), ("3/8", "5/8")),
    ],
)
def test_simple_fractions_are_exact(weights, shares):
    assert GlobalOrder([10] * len(weights), 0, weights).shares == tuple(map(Fraction, shares))


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_other_fractions_are_rounded_by_less_than_two_parts_in_65536(weights):
    shares = GlobalOrder([5] * len(weights), 0, weights).shares
    assert sum(shares) == 1 and min(shares) > 0
    for weight, share in zip(weights, shares, strict=True):
        # at most one unit of rounding, and one per dataset that had to be lifted to a single unit
        assert abs(weight / sum(weights) - share) < (1 + len(weights)) / 65536


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=SEEDS)
def test_every_dataset_of_a_mixture_goes_through_epochs_of_its_own(sizes, seed):
    datasets, samples = GlobalOrder(sizes, seed, [1.0] * len(sizes))(0, 3 * max(sizes) * len(sizes))
    for number, size in enumerate(sizes):
        mine = samples[datasets == number]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5], -1), "32-bit"),
        (([5], 2**32), "32-bit"),
        (([5], 0, (1.0, 2.0)), "1 positive numbers"),
        (([5, 5], 0, (1.0, 0.0)), "2 positive numbers"),
        (([5, 5], 0, (1.0, float("nan"))), "2 positive numbers"),
        (([], 0), "datasets with samples"),
        (([5, 0], 0), "datasets with samples"),
    ],
)
def test_impossible_orders_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GlobalOrder(*arguments)
