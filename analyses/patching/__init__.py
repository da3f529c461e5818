"""Activation patching and its approximations, on any site of any model, within and across media."""

from analyses.patching.agreement import Agreement
from analyses.patching.align import Pair, PerItem, Policy, Selector
from analyses.patching.axes import Axis
from analyses.patching.cells import windows
from analyses.patching.comparison import compare
from analyses.patching.gradient import agreement, attribution_sweep
from analyses.patching.metrics import (
    Coordinate,
    Divergence,
    FromLogits,
    LogitDifference,
    LogOdds,
    Metric,
)
from analyses.patching.result import PatchResult
from analyses.patching.running import SweepInterrupted
from analyses.patching.setup import CleanRun, remember
from analyses.patching.sweep import patch_sweep

__all__ = [
    "Agreement",
    "Axis",
    "CleanRun",
    "Coordinate",
    "Divergence",
    "FromLogits",
    "LogOdds",
    "LogitDifference",
    "Metric",
    "Pair",
    "PatchResult",
    "PerItem",
    "Policy",
    "Selector",
    "SweepInterrupted",
    "agreement",
    "attribution_sweep",
    "compare",
    "patch_sweep",
    "remember",
    "windows",
]
