"""Trying a family on its tiny model, and the table of all that were tried."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from analyses.families.checks import CHECKS, applies
from analyses.families.prompts import Prompts
from model_adapters import load
from model_adapters.families import Family, family_of, part_of

TOLERANCE = 1e-4
"""Largest relative difference that passes, in float32."""


@dataclass(frozen=True)
class Verified:
    """What came of trying one family."""

    name: str
    """Of the tiny model."""
    family: str
    model_type: str
    model_class: str
    media: tuple[str, ...]
    """Beside text."""
    quirks: tuple[str, ...]
    unverified: Mapping[str, str]
    """Media that the family takes and that were not tried, and why."""
    checks: Mapping[str, float]
    """Largest difference by check, relative to the largest value compared."""
    failures: Mapping[str, str]
    """What went wrong, by check; "build" where there was nothing to check."""
    seconds: float

    @property
    def verified(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """As plain data; figures that are no number are None."""
        return {
            "family": self.family,
            "model_type": self.model_type,
            "model_class": self.model_class,
            "media": list(self.media),
            "verified": self.verified,
            "quirks": list(self.quirks),
            "checks": {c: v if math.isfinite(v) else None for c, v in self.checks.items()},
            "failures": dict(self.failures),
            "unverified": dict(self.unverified),
        }


def verify(name: str, build: Callable[[], nn.Module], *, family: Family | None = None) -> Verified:
    """Build a small model, load it and run every check that has a meaning for it.

    Args:
        name: for the table.
        build: makes the model; in float32, for the limit on differences to be fair.
        family: its entry; None for the one of its `model_type`.
    """
    start = time.perf_counter()
    checks: dict[str, float] = {}
    failures: dict[str, str] = {}
    model: Any = None
    entry = family
    try:
        model = build()
        entry = family or _entry(model)
    except Exception as error:
        failures["build"] = _told(error)
    else:
        _check(model, family, checks, failures)
    media = () if entry is None else entry.media
    unverified = {} if entry is None else dict(entry.unverified)
    return Verified(
        name=name,
        family="-" if entry is None else entry.name,
        model_type=name if model is None else model.config.model_type,
        model_class="-" if model is None else type(model).__name__,
        media=tuple(sorted(m.kind for m in media if m.kind not in unverified)),
        quirks=() if entry is None else entry.quirks,
        unverified=unverified,
        checks=checks,
        failures=failures,
        seconds=time.perf_counter() - start,
    )


def _entry(model: Any) -> Family:
    part = part_of(model.config.model_type)
    return family_of(model.config if part is None else getattr(model.config, part.config))


def _check(
    model: Any, family: Family | None, checks: dict[str, float], failures: dict[str, str]
) -> None:
    """Fills in the figure or the failure of every check that has a meaning for the model."""
    try:
        adapter = load(model, family=family)
        checks["self-check"] = max(adapter.self_check.differences.values())
        prompts = Prompts(adapter)
    except Exception as error:
        failures["self-check"] = _told(error)
        return
    for check, run in CHECKS.items():
        if not applies(check, adapter):
            continue
        try:
            value = run(adapter, prompts)
        except Exception as error:
            failures[check] = _told(error)
            continue
        if value is None:
            continue
        checks[check] = value
        if not value <= TOLERANCE:
            failures[check] = f"largest difference {value:.1e}, limit {TOLERANCE:.0e}"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def counted(rows: Iterable[Verified]) -> set[str]:
    """Model types of which everything was verified, with one medium beside text at least."""
    of_type: dict[str, bool] = {}
    for row in rows:
        if row.media:
            of_type[row.model_type] = of_type.get(row.model_type, True) and row.verified
    return {name for name, good in of_type.items() if good}


def as_json(rows: Sequence[Verified]) -> str:
    """A list of objects, one a tiny model."""
    return json.dumps([row.to_dict() for row in rows], indent=2, allow_nan=False)
