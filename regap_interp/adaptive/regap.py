"""ReGap: each row gets the strong correction or not, as its own modality's signal says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_adapters import Adapter
from regap_interp.adaptive.bundle import MEDIA, Bundle
from regap_interp.adaptive.files import load_bundle, save_bundle
from regap_interp.adaptive.signals import signal_node
from regap_interp.artefact.errors import ArtefactError
from regap_interp.graph.edits import Edit, add
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import Node, modality, read, select
from regap_interp.graph.results import Run

if TYPE_CHECKING:
    from regap_interp.adaptive.safe import Safe

Missing = Literal["refuse", "uncorrected"]


class MissingBundleError(ValueError):
    """A request of a modality that was never calibrated."""


@dataclass(frozen=True)
class Decision:
    """What ReGap did with one row. Numbers are None for text and for rows without a bundle."""

    modality: str
    drift: float | None
    """Coordinate along the drift direction at the corrected layer, uncorrected: text twins 0,
    their media forms 1 on average."""
    signal: float | None
    """In units of the refusal norm at the diagnostic layer."""
    triggered: bool
    """Whether the signal reached the threshold."""
    strength: float
    """Multiple of the drift direction that was subtracted."""
    layers_recomputed: int
    """Decoder layers run for this row beyond its own prefill: probe and correction."""


@dataclass(frozen=True, eq=False)
class ReGap:
    """Bundles of one model, at most one a modality, ready to be installed.

        with ReGap([image_bundle, audio_bundle]).on(adapter) as safe:
            answers = safe.generate(chats, max_new_tokens=64)
        answers.texts, answers.decisions

    Text rows are never touched: their answers are the bare model's, bit for bit.
    """

    bundles: Mapping[str, Bundle]
    """By modality. Given as a list, they are put under their own."""
    missing: Missing = "refuse"
    """What happens to media of a modality without a bundle: "refuse" raises before anything runs,
    since such rows would be answered undefended; "uncorrected" answers them so."""

    def __init__(self, bundles: Iterable[Bundle], *, missing: Missing = "refuse") -> None:
        """Put bundles together.

        Raises:
            ValueError: No bundle, two for one modality, or of different models.
        """
        given = list(bundles)
        by_modality = {bundle.modality: bundle for bundle in given}
        if not given or len(by_modality) != len(given):
            raise ValueError(
                f"bundles are for {[bundle.modality for bundle in given]}; give at least one, and "
                "one a modality"
            )
        models = {bundle.manifest.fingerprint for bundle in given}
        if len(models) > 1:
            raise ValueError(
                f"bundles were calibrated on {len(models)} different models; calibrate all on one"
            )
        if missing not in ("refuse", "uncorrected"):
            raise ValueError(f"missing is {missing!r}; expected 'refuse' or 'uncorrected'")
        ordered = {name: by_modality[name] for name in MEDIA if name in by_modality}
        object.__setattr__(self, "bundles", ordered)
        object.__setattr__(self, "missing", missing)

    @property
    def graph(self) -> Graph:
        """ReGap as an intervention graph; outputs `signal.M` and `drift.M` for each modality M.

        One probe serves the whole batch: it holds the weak correction of every modality, each for
        its own rows.
        """
        weak = {name: _correction(bundle, -bundle.weak) for name, bundle in self.bundles.items()}
        probe = tuple(weak.values())
        edits: list[Edit] = []
        outputs: dict[str, Node] = {}
        for name, bundle in self.bundles.items():
            signal = signal_node(
                bundle.signal,
                probe,
                layer=bundle.layer,
                refusal=bundle.refusal,
                diagnostic=bundle.diagnostic,
                diagnostic_refusal=bundle.diagnostic_refusal,
            )
            strength = select(signal >= bundle.threshold, -bundle.strong, -bundle.untriggered)
            edits.append(_correction(bundle, strength))
            outputs[f"signal.{name}"] = signal
            outputs[f"drift.{name}"] = read("resid_post", bundle.layer, under=()).project(
                bundle.drift, unit="norm"
            )
        return Graph(*edits, outputs=outputs)

    def on(self, adapter: Adapter) -> "Safe":
        """Install on a model: `with regap.on(adapter) as safe:`.

        Inside, every generate loop of the raw model is corrected as well.

        Raises:
            MismatchError: The bundles were made for another model or chat template.
        """
        from regap_interp.adaptive.safe import Safe

        self.check(adapter)
        return Safe(self, adapter)

    def check(self, adapter: Adapter) -> None:
        """Refuse a model that the bundles were not made for.

        Raises:
            MismatchError: Says what differs.
        """
        for bundle in self.bundles.values():
            bundle.manifest.check(adapter)

    def check_rows(self, modalities: Sequence[str]) -> None:
        """Refuse rows that would be answered undefended, unless `missing` allows it.

        Raises:
            MissingBundleError: Names the rows.
        """
        bare = [
            row
            for row, name in enumerate(modalities)
            if name != "text" and name not in self.bundles
        ]
        if bare and self.missing == "refuse":
            names = sorted({modalities[row] for row in bare})
            raise MissingBundleError(
                f"rows {bare[:5]} are {', '.join(names)}, and there are bundles for "
                f"{', '.join(self.bundles)} only: calibrate on {', '.join(names)}, or let such "
                "rows be answered undefended with ReGap(..., missing='uncorrected')"
            )

    def decisions(self, run: Run, modalities: Sequence[str]) -> tuple[Decision, ...]:
        """What a run of `graph` decided, row by row; `modalities` are those of the rows."""
        return tuple(
            _decision(self.bundles.get(name), name, run, row) for row, name in enumerate(modalities)
        )

    def save(self, folder: str | Path) -> None:
        """Write one file a modality into a folder, which is made if it is not there."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, bundle in self.bundles.items():
            save_bundle(bundle, Path(folder) / f"{name}.safetensors")

    @classmethod
    def load(
        cls, folder: str | Path, adapter: Adapter | None = None, *, missing: Missing = "refuse"
    ) -> "ReGap":
        """Read every bundle of a folder.

        Args:
            folder: What `save` wrote.
            adapter: The model they are to be used on, checked now; unless given, `on` checks it.
            missing: What happens to media of a modality without a bundle.

        Raises:
            ArtefactError: There are none, or a file is damaged.
            MismatchError: They were made for another model than `adapter`.
        """
        paths = [Path(folder) / f"{name}.safetensors" for name in MEDIA]
        there = [path for path in paths if path.exists()]
        if not there:
            raise ArtefactError(
                f"no bundle in {str(folder)!r}; expected {', '.join(path.name for path in paths)}"
            )
        return cls([load_bundle(path, adapter) for path in there], missing=missing)


def _correction(bundle: Bundle, strength: Node | float) -> Edit:
    """The bundle's drift added, this many times, to the rows of its modality.

    A bare choice between numbers, so that a pass can go on as untriggered before it is decided.
    """
    own = select(modality(bundle.modality), strength, 0.0)
    return add("resid_post", bundle.layer, bundle.drift, strength=own)


def _decision(bundle: Bundle | None, name: str, run: Run, row: int) -> Decision:
    layers = int(run.recomputed[row])
    if bundle is None:
        return Decision(name, None, None, False, 0.0, layers)
    signal = float(run[f"signal.{name}"][row])
    return Decision(
        modality=name,
        drift=float(run[f"drift.{name}"][row]),
        signal=signal,
        triggered=signal >= bundle.threshold,
        strength=sum(-float(one[row]) for one in run.strengths.values()) + 0.0,
        layers_recomputed=layers,
    )
