"""What a run took, and where it ran."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "timm", "gsplat", "numba", "numpy", "torchmetrics", "lpips")


@dataclass
class Measurement:
    """Seconds by the clock, and the most memory in MB that the process (or, on CUDA, its tensors) held meanwhile."""

    seconds: float = 0.0
    peak_memory_mb: float = 0.0


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measure what happens in the block; the numbers are there when it ends."""
    result, cuda = Measurement(), torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()
    began = time.perf_counter()
    yield result
    if cuda:
        torch.cuda.synchronize()
        result.peak_memory_mb = torch.cuda.max_memory_allocated() / 1e6
    else:
        result.peak_memory_mb = peak_bytes() / 1e6
    result.seconds = time.perf_counter() - began


def forget_peak() -> None:
    forget = Path("/proc/self/clear_refs")
    if forget.exists():  # Linux alone; elsewhere the peak is that of the whole process so far
        forget.write_text("5")


def peak_bytes() -> float:
    """Most memory that this process has held, since `forget_peak` where that is possible."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * float(status.read_text().split("VmHWM:")[1].split()[0])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def versions() -> dict[str, str]:
    """Of this package and of those that numbers depend on."""
    from da3_splat import __version__

    found = {"da3_splat": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: str) -> dict[str, object]:
    """The device, the threads, the renderer behind the numbers."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "renderer": "gsplat, classic" if cuda else "embedded CPU rasterizer, classic",
    }
