"""Threads for kernels that release the GIL: a pool of this process's own, safe beside other threads and forks."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def parallel(kernel: Callable[[int, int], None], count: int, chunk: int) -> None:
    """Call kernel(start, stop) over 0..count in pieces of `chunk`, on torch.get_num_threads() threads.

    The pieces do not depend on the number of threads, so neither does a result that is summed by piece.
    """
    starts = range(0, count, chunk)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            kernel(start, min(start + chunk, count))
        return
    key = (os.getpid(), threads)  # a forked child must not wait for threads that only its parent has
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="da3_splat")
    list(_pools[key].map(lambda start: kernel(start, min(start + chunk, count)), starts))
