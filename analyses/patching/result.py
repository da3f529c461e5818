"""What a sweep measured: every cell of every item, with baselines and statistics on top."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from analyses.patching import statistics
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import read_tensors, write_tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mode = Literal["denoise", "noise"]
_FORMAT = "patching 1"
_THEIR_NAMES = {"layer": "layer", "position": "pos", "head": "head_index"}


@dataclass(frozen=True)
class Axis:
    """One axis of a grid of cells."""

    name: Literal["layer", "position", "head"]
    labels: tuple[str, ...]
    """Of its places, in order."""


@dataclass(frozen=True)
class Agreement:
    """How well an approximation agrees with patches that were really made."""

    spearman: float
    """Rank correlation of the changes of the metric, cell by cell; NaN if either is constant."""
    largest: float
    """Largest difference between the two, in units of clean minus corrupted."""
    n: int
    """Cells compared."""


@dataclass(frozen=True, eq=False)
class PatchResult:
    """The metric of every patched run. Cells that have not been run are NaN."""

    raw: Float[Tensor, "item *cell"]
    """The metric of the patched runs, float64."""
    axes: tuple[Axis, ...]
    """Of the cells: layer (or window of layers), position and, where heads were asked for, head."""
    corrupted: Float[Tensor, "item"]
    """The metric of the corrupted runs, nothing patched."""
    clean: Float[Tensor, "item"]
    """The metric of the clean runs."""
    site: str
    metric: str
    """What it is called."""
    mode: Mode
    """"denoise": clean states into corrupted runs; "noise": the other way round."""
    method: Literal["exact", "gradient", "integrated gradients"]
    model: str
    """A name for reports."""
    recipe: str
    """sha256 over everything that the numbers depend on."""
    seed: int = 0
    """Of all draws: resamples, permutations, samples of cells."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """How many cells of items were had "resumed", by "whole" passes, and "unchanged": what the
    patch puts in is there already, or it comes behind the place where the metric is read."""
    notes: tuple[str, ...] = ()
    """What made the sweep slower than it can be."""
    agreement: Agreement | None = None
    """Of an approximation with real patches."""

    @property
    def n(self) -> int:
        """Items, that is pairs of runs."""
        return len(self.raw)

    @property
    def base(self) -> Float[Tensor, "item"]:
        """The metric of the runs that were patched, before."""
        return self.corrupted if self.mode == "denoise" else self.clean

    @property
    def complete(self) -> bool:
        """Whether every cell of every item has been run."""
        return not bool(self.raw.isnan().any())

    @property
    def change(self) -> Float[Tensor, "item *cell"]:
        """By how much each patch moves the metric."""
        return self.raw - statistics.beside(self.base, self.raw)

    @property
    def values(self) -> Float[Tensor, "*cell"]:
        """Normalised effect over all items: 0 as in the corrupted runs, 1 as in the clean ones.

        It is a ratio of means, so items that hardly differ do not blow it up; NaN where the runs
        do not differ.
        """
        return statistics.recovered(self.raw, self.corrupted, self.clean)

    def interval(
        self, *, confidence: float = 0.95, resamples: int = 1000
    ) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
        """Both ends of a percentile interval of `values` that resamples items.

        Raises:
            ValueError: for fewer than two items.
        """
        return statistics.bootstrap(
            self.raw, self.corrupted, self.clean, resamples, confidence, self.seed
        )

    def p_values(
        self, *, permutations: int = 4096, corrected: bool = False
    ) -> Float[Tensor, "*cell"]:
        """Two-sided p-values of each cell's mean change, by flipping the signs of items' changes.

        With n items none is below `2 / 2**n`.

        Args:
            permutations: draws; all of them are made if there are no more.
            corrected: for all cells together, by the largest mean of each draw.

        Raises:
            ValueError: for fewer than two items.
        """
        return statistics.sign_flips(self.change, permutations, corrected, self.seed)

    def at(self, **labels: str | int) -> "PatchResult":
        """The part with one label of some axes, such as `at(position="last")`.

        Raises:
            ValueError: for an axis or a label that it does not have.
        """
        names = [axis.name for axis in self.axes]
        kept: list[Any] = [slice(None)] * len(self.axes)
        for name, label in labels.items():
            if name not in names:
                raise ValueError(f"no axis {name!r}; the axes are {', '.join(names)}")
            known = self.axes[names.index(name)].labels
            if str(label) not in known:
                raise ValueError(f"no {name} {label!r}; they are {', '.join(known)}")
            kept[names.index(name)] = known.index(str(label))
        axes = tuple(axis for axis in self.axes if axis.name not in labels)
        return dataclasses.replace(self, raw=self.raw[(slice(None), *kept)], axes=axes)

    def __repr__(self) -> str:
        """One line."""
        shape = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.axes) or "one cell"
        missing = int(self.raw.isnan().sum())
        parts = [
            f"{self.method} {self.mode} of {self.site}",
            shape,
            f"n={self.n}",
            f"{self.metric}: {self.corrupted.mean():.3f} corrupted, {self.clean.mean():.3f} clean",
        ]
        if missing:
            parts.append(f"{missing} cells missing")
        if self.agreement is not None:
            parts.append(
                f"Spearman {self.agreement.spearman:.2f} with {self.agreement.n} real patches"
            )
        return f"<PatchResult {', '.join(parts)}>"

    def rows(self) -> list[dict[str, Any]]:
        """One row for each cell and item: labels, item, metric and change."""
        change = self.change
        found = []
        for place in itertools.product(*(range(len(axis.labels)) for axis in self.axes)):
            named: dict[str, Any] = {
                axis.name: axis.labels[i] for axis, i in zip(self.axes, place, strict=True)
            }
            for item in range(self.n):
                where = (item, *place)
                found.append(
                    {
                        **named,
                        "item": item,
                        "metric": float(self.raw[where]),
                        "change": float(change[where]),
                        "corrupted": float(self.corrupted[item]),
                        "clean": float(self.clean[item]),
                    }
                )
        return found

    def to_frame(self) -> Any:
        """`rows` as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas; rows() does not") from (
                error
            )
        return pandas.DataFrame(self.rows())

    def to_transformer_lens(self) -> Any:
        """The same as TransformerLens's `PatchingResult`; its positions are numbers of places.

        Raises:
            ImportError: TransformerLens is not installed.
        """
        try:
            import pandas
            from transformer_lens.patching import PatchingResult
        except ImportError as error:
            raise ImportError(
                "this needs TransformerLens: pip install 'regap-interp[tl]'"
            ) from error
        names = [_THEIR_NAMES[axis.name] for axis in self.axes]
        places = itertools.product(*(range(len(axis.labels)) for axis in self.axes))
        return PatchingResult(
            values=self.raw.movedim(0, -1),
            axis_names=names,
            index_df=pandas.DataFrame(places, columns=names),
            metric_names=[self.metric],
            reduced=False,
            baseline=self.base,
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw `values`: a map over two axes, or a line over one; a new figure if `ax` is None.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: when more than two axes have several labels.
        """
        from analyses.patching.drawing import draw

        return draw(self, ax)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, cells that were not run included.

        Raises:
            ArtefactError: there is no such folder.
        """
        tensors = {name: getattr(self, name) for name in ("raw", "corrupted", "clean")}
        about = {name: getattr(self, name) for name in _PLAIN}
        write_tensors(
            path,
            tensors,
            {
                **about,
                "format": _FORMAT,
                "axes": [[axis.name, list(axis.labels)] for axis in self.axes],
                "passes": dict(self.passes),
                "notes": list(self.notes),
                "agreement": self.agreement and _written(self.agreement),
            },
        )

    @staticmethod
    def load(path: str | Path) -> "PatchResult":
        """Read what `save` wrote.

        Raises:
            ArtefactError: the file is of another make.
        """
        tensors, about = read_tensors(path)
        if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
            raise ArtefactError(f"{path} holds no patching result")
        try:
            return _loaded(tensors, about)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{path} is damaged: {error!r}") from error


_PLAIN = ("site", "metric", "mode", "method", "model", "recipe", "seed")


def _loaded(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> PatchResult:
    axes = tuple(Axis(name, tuple(labels)) for name, labels in about["axes"])
    shape = (len(tensors["clean"]), *(len(axis.labels) for axis in axes))
    if tensors["raw"].shape != shape or tensors["corrupted"].shape != shape[:1]:
        raise ValueError(f"its values have shape {tuple(tensors['raw'].shape)}, not {shape}")
    agreement = about["agreement"]
    plain: dict[str, Any] = {name: about[name] for name in _PLAIN}
    return PatchResult(
        raw=tensors["raw"],
        axes=axes,
        corrupted=tensors["corrupted"],
        clean=tensors["clean"],
        **plain,
        passes=dict(about["passes"]),
        notes=tuple(about["notes"]),
        agreement=None if agreement is None else _read(agreement),
    )


def _written(agreement: Agreement) -> dict[str, Any]:
    """Files hold no NaN outside tensors."""
    found = dataclasses.asdict(agreement)
    return {name: None if value != value else value for name, value in found.items()}


def _read(found: Mapping[str, Any]) -> Agreement:
    spearman, largest = (
        math.nan if found[name] is None else float(found[name]) for name in ("spearman", "largest")
    )
    return Agreement(spearman, largest, int(found["n"]))
