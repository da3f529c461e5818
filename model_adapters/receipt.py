"""What was checked on a model when it was loaded, on which versions, with figures."""

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter

_PACKAGES = ("torch", "transformers", "nnsight")


@dataclass(frozen=True)
class Receipt:
    """A model, and how exactly the identities of its sites hold. Made by `Adapter.receipt`."""

    model_id: str
    model_type: str
    model_class: str
    family: str
    media: tuple[str, ...]
    quirks: tuple[str, ...]
    unverified: Mapping[str, str]
    """Media that the model takes and this package does not, and why."""
    n_layers: int
    d_model: int
    dtype: str
    device: str
    checks: Mapping[str, float]
    """Largest difference of each identity, relative to the largest value; of sums of few terms,
    relative to those at the same place."""
    limits: Mapping[str, float]
    """What each of them had to stay below."""
    discontinuities: tuple[int, ...]
    """Layers after which the model adds something to the stream itself."""
    versions: Mapping[str, str]
    """Of Python and the packages that the result depends on."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; returns the path."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        """A few lines for people."""
        media = ", ".join(("text", *self.media))
        lines = [
            f"{self.model_id}: {self.model_class} ({self.model_type}), family {self.family}",
            f"  takes {media}; {self.n_layers} layers, d_model {self.d_model}, {self.dtype} on "
            f"{self.device}",
        ]
        if self.quirks:
            lines.append(f"  quirks: {', '.join(self.quirks)}")
        lines += [f"  not verified: {kind}: {why}" for kind, why in self.unverified.items()]
        if self.discontinuities:
            lines.append(f"  adds to the stream itself after layers {self.discontinuities}")
        lines.append("  checked, largest relative difference (and its limit):")
        for name, value in self.checks.items():
            lines.append(f"    {value:.1e} ({self.limits[name]:.0e})  {name}")
        lines.append("  " + ", ".join(f"{name} {of}" for name, of in self.versions.items()))
        return "\n".join(lines)


def receipt(adapter: "Adapter") -> Receipt:
    """What the self-check of an adapter found; see `Adapter.receipt`."""
    module, family = adapter.module, adapter.family
    return Receipt(
        model_id=adapter.model_id,
        model_type=module.config.model_type,
        model_class=type(module).__name__,
        family=family.name,
        media=tuple(sorted(adapter.media)),
        quirks=family.quirks,
        unverified=dict(family.unverified),
        n_layers=adapter.n_layers,
        d_model=adapter.d_model,
        dtype=str(module.dtype).removeprefix("torch."),
        device=str(adapter.device),
        checks=dict(adapter.self_check.differences),
        limits=dict(adapter.self_check.limits),
        discontinuities=adapter.discontinuities,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
    )
