"""Memory for the pictures of batches, used again as soon as a batch is gone.

The kernel zeroes every page of a fresh array when it is first written, which costs about as much as copying it: next to
decoding, the largest part of a batch's CPU time. A buffer that comes back has its pages already.

Nobody has to give anything back. A lent buffer returns when the last array that looks at it is gone, also one that a
device transfer or a slice keeps alive, so a batch may be held as long as one likes.
"""

import collections
import math
import weakref

import numpy as np
from jaxtyping import Shaped

_KEPT = 8  # free buffers of one size; the loader has a few batches at a time


class BufferPool:
    """Lends arrays; several threads may ask and let go."""

    def __init__(self, keep: int = _KEPT):
        """`keep` is the most free buffers of one size that wait for use; more are given to the system."""
        self._free = collections.defaultdict(lambda: collections.deque(maxlen=keep))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype | type) -> Shaped[np.ndarray, "..."]:
        """An array with whatever was in it before, like `np.empty`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size == 0:
            return np.empty(shape, dtype)
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        lent = _Lent(memory, shape, np.dtype(dtype))
        weakref.finalize(lent, free.append, memory).atexit = False
        return np.asarray(lent)


class _Lent:
    """What numpy takes for the owner of the memory: all arrays made of it keep this alive, and nothing else does.

    An array as owner would not do: a view of a view keeps the first array that owns memory, not those in between.
    """

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        data = (memory.__array_interface__["data"][0], False)  # False: may be written
        self.__array_interface__ = {"version": 3, "data": data, "shape": shape, "typestr": dtype.str}
