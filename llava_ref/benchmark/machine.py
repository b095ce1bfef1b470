"""Say what a processor or a CUDA device has to say during a measurement: done, read rate, peak memory.

A decoded token reads every weight once, which is why the rate at which memory is read bounds decoding.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Protocol

from .bandwidth import PASSES, SIZE

STATUS = Path("/proc/self/status")


class Machine(Protocol):
    """Where a model runs."""

    def ready(self) -> None:
        """Return once everything that was started has been done."""
        ...

    def read_gb_s(self) -> float:
        """Read memory, or copy it, and return 10^9 bytes a second."""
        ...

    def device_memory_mb(self) -> float | None:
        """Return the most memory of a device that was in use at once, in 10^6 bytes; None without a device."""
        ...

    def close(self) -> None: ...


class Host:
    """The processor. Its memory is read with some threads, in a process of its own."""

    def __init__(self, threads: int) -> None:
        command = [sys.executable, "-m", "llava_ref.benchmark.bandwidth", str(threads)]
        self._reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> None:
        pass

    def read_gb_s(self) -> float:
        assert self._reader.stdin is not None and self._reader.stdout is not None
        print(file=self._reader.stdin, flush=True)
        return float(self._reader.stdout.readline())

    def device_memory_mb(self) -> None:
        return None

    def close(self) -> None:
        with suppress(OSError):
            self._reader.communicate()


class CudaDevice:
    """A CUDA device. Its memory is copied, and every byte counts twice: it is read, and it is written."""

    def __init__(self) -> None:
        self._peak = 0

    def ready(self) -> None:
        import torch

        torch.cuda.synchronize()

    def read_gb_s(self) -> float:
        import torch

        self.device_memory_mb()
        free, _ = torch.cuda.mem_get_info()
        source = torch.zeros(min(SIZE, free // 4), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        found = [_copy_ms(source, target) for _ in range(1 + PASSES)][1:]  # the first warms up
        rate = 2 * source.nbytes / median(found) / 1e6
        del source, target
        torch.cuda.reset_peak_memory_stats()
        return rate

    def device_memory_mb(self) -> float:
        import torch

        self._peak = max(self._peak, torch.cuda.max_memory_allocated())
        return self._peak / 1e6

    def close(self) -> None:
        pass


def _copy_ms(source: object, target: object) -> float:
    """Copy a tensor on the device, and return the milliseconds between two events around it."""
    import torch

    from .card.timing import elapsed

    assert isinstance(source, torch.Tensor) and isinstance(target, torch.Tensor)
    return elapsed(lambda: target.copy_(source)) * 1e3


def peak_rss_mb() -> float | None:
    """Return the most memory that this process has had at once, in 10^6 bytes; None where the system does not say."""
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, StopIteration):
        return _peak_of_usage()


def _peak_of_usage() -> float | None:
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss / 1e6  # macOS, which has no /proc, counts bytes
