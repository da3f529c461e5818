"""The arms the organism is compared under, with every strength frozen by the calibration split."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from analyses.organism.answers import Tick, ask, encode_samples
from model_adapters import Adapter
from model_adapters.organism.world import MEDIA_SETTINGS, Setting, draw_samples
from regap_interp.adaptive.arms import (
    Arm,
    addition_arm,
    bare_arm,
    fixed_arm,
    random_arm,
    regap_arm,
    smallest_strength,
)
from regap_interp.adaptive.bundle import Bundle
from regap_interp.adaptive.regap import ReGap

ARMS = ("none", "weak", "strong", "regap", "refusal_addition", "random")
SHIPPED = Path(__file__).parent / "bundles"
STRENGTHS = tuple(0.25 * step for step in range(1, 13))


@dataclass(frozen=True)
class Tuned:
    """A fixed strength that was tuned on the calibration split."""

    strength: float
    refused: float
    """Harmful calibration items refused at it."""
    target: float
    """What was to be reached: ReGap's share there."""
    reached: bool
    n: int
    """Harmful calibration items."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """Everything that was chosen before the report split is looked at."""

    bundles: tuple[Bundle, ...]
    strong: Mapping[str, Tuned]
    """Modality -> smallest fixed drift correction that refuses as much as ReGap."""
    addition: Mapping[str, Tuned]
    """Modality -> smallest multiple of the refusal direction that does."""

    def bundle(self, setting: str) -> Bundle:
        """The bundle of one modality."""
        return next(one for one in self.bundles if one.modality == setting)

    def arm(self, name: str, *, seed: int = 0) -> Arm:
        """One of `ARMS`; `seed` draws the random direction."""
        weak = {bundle.modality: bundle.weak for bundle in self.bundles}
        strong = {setting: tuned.strength for setting, tuned in self.strong.items()}
        added = {setting: tuned.strength for setting, tuned in self.addition.items()}
        match name:
            case "none":
                return bare_arm()
            case "weak":
                return fixed_arm("weak", self.bundles, weak)
            case "strong":
                return fixed_arm("strong", self.bundles, strong)
            case "regap":
                return regap_arm(self.bundles)
            case "refusal_addition":
                return addition_arm(self.bundles, added)
            case "random":
                return random_arm(self.bundles, strong, seed=seed)
        raise ValueError(f"no arm {name!r}; there are {', '.join(ARMS)}")

    def save(self, folder: str | Path) -> None:
        """Write the bundles and `arms.json`."""
        ReGap(self.bundles).save(folder)
        tuned = {
            name: {setting: asdict(one) for setting, one in getattr(self, name).items()}
            for name in ("strong", "addition")
        }
        text = json.dumps(tuned, indent=1, sort_keys=True, allow_nan=False)
        (Path(folder) / "arms.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, adapter: Adapter) -> "Frozen":
        """Read what `save` wrote, for the model it was made on.

        Raises:
            ValueError: A file is missing, or made for another model.
        """
        path = Path(folder) / "arms.json"
        if not path.exists():
            raise ValueError(f"no {path}; make the bundles with `regap calibrate --out {folder}`")
        regap = ReGap.load(folder, adapter)
        found = json.loads(path.read_text(encoding="utf-8"))
        strong, addition = (
            {setting: Tuned(**one) for setting, one in found[name].items()}
            for name in ("strong", "addition")
        )
        missing = set(MEDIA_SETTINGS) - (set(regap.bundles) & set(strong) & set(addition))
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(sorted(missing))}; calibrate them too")
        return cls(tuple(regap.bundles.values()), strong, addition)


def tune(
    adapter: Adapter, bundle: Bundle, *, n: int, seed: int, tick: Tick | None = None
) -> tuple[Tuned, Tuned]:
    """The fixed correction and the refusal addition that refuse as much as ReGap.

    All on `n` harmful items of the calibration split.
    """
    setting: Setting = bundle.modality  # type: ignore[assignment]  # checked by Bundle
    samples = draw_samples("calibration", setting, n, seed=seed, harmful=True)
    batches = encode_samples(adapter, samples)

    def share(arm: Arm) -> float:
        graded = ask(adapter, samples, batches=batches, graph=arm.graph, tick=tick)
        return graded.rate("refused").value

    target = share(regap_arm([bundle]))

    def search(arm_of: Callable[[float], Arm], grid: Sequence[float]) -> Tuned:
        found = smallest_strength(lambda strength: share(arm_of(strength)), target, grid=grid)
        strength, refused, reached = found
        return Tuned(strength, refused, target, reached, n)

    return (
        search(
            lambda strength: fixed_arm("strong", [bundle], {setting: strength}),
            [one for one in STRENGTHS if one >= 1],
        ),
        search(lambda strength: addition_arm([bundle], {setting: strength}), STRENGTHS),
    )
