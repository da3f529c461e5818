"""Seconds of calls that take turns, and the machine they ran on."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """How long ours took over how long theirs took, in runs that took turns."""

    ours: tuple[float, ...]
    """Seconds of every run."""
    theirs: tuple[float, ...]
    """Seconds of the runs that ours is compared with, each just before or after its partner."""

    @property
    def value(self) -> float:
        """The median over pairs of runs: a spell in which the machine is slow hits both."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of a pair."""
        ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)

    def pairs(self) -> list[list[float]]:
        """`[ours, theirs]` of every run."""
        return [[a, b] for a, b in zip(self.ours, self.theirs, strict=True)]


class Progress:
    """One line on standard error that tells what runs and how much is done."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.perf_counter()

    def step(self, what: str) -> None:
        """Count one run or check, which begins now."""
        self.done += 1
        passed = time.perf_counter() - self.start
        line = f"\r{self.done:3} of {self.total}, {passed:4.0f} s, {what}"
        print(f"{line:70}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        print(file=sys.stderr)


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Seconds of one call, what it has queued on the device included, and what it returned."""
    _finish(device)
    start = time.perf_counter()
    result = call()
    _finish(device)
    return time.perf_counter() - start, result


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, what it has queued on the device included."""
    return timed(call, device)[0]


def alternate(
    sides: Mapping[str, Callable[[], float]], runs: int, progress: Progress
) -> dict[str, tuple[float, ...]]:
    """What every side measures in every run, after one run each that is not counted.

    Odd runs go through the sides in the order given, even ones back, so that no side always comes
    first.

    Args:
        sides: By name; each runs once and returns the seconds that count.
        runs: How many are counted.
        progress: Told about every run.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name in sides if run % 2 else reversed(list(sides)):
            progress.step(name)
            taken = sides[name]()
            if run:
                found[name].append(taken)
    return {name: tuple(of) for name, of in found.items()}


def machine(device: torch.device) -> dict[str, object]:
    """Processor, threads and versions, for the report."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "nnsight")},
    }


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
