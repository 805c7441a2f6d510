"""How much of its memory a machine reads in a second: the ceiling of every server here."""

from __future__ import annotations

import threading
import time

import numpy as np

BYTES = 512 << 20  # far beyond any cache


def reading(threads: int, rounds: int = 4) -> float:
    """Bytes a second, read by so many threads at once; numpy lets go of the interpreter while it sums."""
    arrays = [np.ones(BYTES // 4, dtype=np.float32) for _ in range(threads)]

    def work(array: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        for _ in range(rounds):
            array.max()

    workers = [threading.Thread(target=work, args=(array,)) for array in arrays]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * rounds * BYTES / (time.perf_counter() - began)
