"""Measure a run's cost: memory and time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
import time
from types import TracebackType

import psutil
import torch


class Cost:
    """Wall time and peak memory of a block; on CPU, memory is sampled every 50 ms.

    ``peak_memory_bytes`` is the process's largest resident size during the block; ``added_memory_bytes`` is that
    minus the size at its start. On CUDA both are the allocator's peak.
    """

    def __enter__(self) -> Cost:
        give_back()  # so that a run is not charged for memory that the previous one left behind
        self._process = psutil.Process()
        self._start_bytes = self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._thread.join()
        if torch.cuda.is_available():
            self.peak_memory_bytes = self.added_memory_bytes = torch.cuda.max_memory_allocated()
        else:
            self.peak_memory_bytes = self._peak
            self.added_memory_bytes = self._peak - self._start_bytes

    def _sample(self) -> None:
        while not self._stop.wait(0.05):
            self._peak = max(self._peak, self._process.memory_info().rss)


def give_back() -> None:
    """Return unused memory to the operating system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
