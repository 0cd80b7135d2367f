"""Lent arrays: used again when nobody looks, never before."""

import gc
import threading
import tracemalloc

import jax
import numpy as np

from vla_jax.data.pictures.buffers import BufferPool


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_lent_again_when_the_array_is_gone():
    pool = BufferPool()
    first = pool.empty((4, 8, 3), np.uint8)
    first[:] = 7
    place = address(first)
    del first
    again = pool.empty((8, 4, 3), np.uint8)  # as many bytes
    assert address(again) == place and (again == 7).all()
    assert again.flags.writeable and again.flags.c_contiguous


def test_memory_is_not_lent_while_a_slice_or_a_device_array_looks_at_it():
    pool = BufferPool()
    array = pool.empty((64, 64), np.float32)
    array[:] = 1
    row, on_device = array[3:5].T, jax.device_put(array)  # on CPU a transfer may share the memory
    del array
    gc.collect()
    other = pool.empty((64, 64), np.float32)
    other[:] = 2
    assert not np.shares_memory(other, row)
    assert (row == 1).all() and bool((on_device == 1).all())
    place = address(row) - 3 * 64 * 4
    del row, on_device
    gc.collect()
    assert address(pool.empty((64, 64), np.float32)) == place


def test_arrays_at_the_same_time_are_apart():
    pool = BufferPool()
    arrays = [pool.empty((10,), np.int64) for _ in range(5)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [set(array.tolist()) for array in arrays] == [{0}, {1}, {2}, {3}, {4}]


def test_no_more_than_the_limit_wait_for_use():
    pool, megabyte = BufferPool(keep=2), 1 << 20
    tracemalloc.start()
    try:
        arrays = [pool.empty((megabyte,), np.uint8) for _ in range(5)]
        assert tracemalloc.get_traced_memory()[0] > 4.9 * megabyte
        del arrays
        assert 1.9 * megabyte < tracemalloc.get_traced_memory()[0] < 2.1 * megabyte
    finally:
        tracemalloc.stop()


def test_nothing_needs_no_memory():
    assert BufferPool().empty((0, 0, 3), np.uint8).shape == (0, 0, 3)


def test_threads_never_write_into_each_others_arrays():
    pool, wrong = BufferPool(), []

    def work(number: int) -> None:
        for turn in range(300):
            array = pool.empty((257,), np.int64)
            array[:] = number * 1000 + turn
            if (array != number * 1000 + turn).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert wrong == []
