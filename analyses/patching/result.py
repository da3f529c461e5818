"""Results of sweeps: tables, pictures and files of what was measured."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from analyses.patching.agreement import Agreement
from analyses.patching.axes import Axis
from analyses.patching.drawing import Drawn, EffectsView, no_interval, picture
from analyses.patching.measured import Measured
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import read_tensors, write_tensors
from regap_interp.views import About, Compared, HeatMap, Shown
from regap_interp.views.about import words

if TYPE_CHECKING:
    from pandas import DataFrame

_FORMAT = "patching 2"
_THEIR_NAMES = {"layer": "layer", "position": "pos", "head": "head_index"}


@dataclass(frozen=True, eq=False, repr=False)
class PatchResult(Measured, Shown):
    """What a sweep measured, as a table, a picture and a file."""

    def __repr__(self) -> str:
        """One line."""
        shape = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.axes) or "one cell"
        missing = int(self.raw.isnan().sum())
        parts = [
            self.what,
            *self.part,
            shape,
            f"n={self.n}",
            f"{self.metric}: {self.corrupted.mean():.3f} corrupted, {self.clean.mean():.3f} clean",
        ]
        if missing:
            parts.append(f"{missing} cells missing")
        if self.agreement is not None:
            parts.append(str(self.agreement))
        return f"<PatchResult {', '.join(parts)}>"

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
        part = (*self.part, *(f"{name} {label}" for name, label in labels.items()))
        return dataclasses.replace(self, raw=self.raw[(slice(None), *kept)], axes=axes, part=part)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each cell and item: labels, item, metric and change."""
        change = self.change
        return [
            {
                **named,
                "item": item,
                "metric": float(self.raw[(item, *place)]),
                "change": float(change[(item, *place)]),
                "corrupted": float(self.corrupted[item]),
                "clean": float(self.clean[item]),
            }
            for place, named in self._places()
            for item in range(self.n)
        ]

    def to_frame(self) -> "DataFrame":
        """One row for each cell: labels, normalised effect with its 95 % interval, mean change in
        units of the metric, p-values (each cell's own, and corrected for all), and items.

        Intervals and p-values are NaN for one item. `rows` has the items one by one.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas: pip install 'regap-interp[views]'; rows() does not"
            ) from error
        low, high = self._interval()
        nothing = no_interval(self.values)[0]
        several = self.n > 1
        columns = {
            "effect": self.values,
            "low": low,
            "high": high,
            "change": self.change.mean(dim=0),
            "p": self.p_values() if several else nothing,
            "p_corrected": self.p_values(corrected=True) if several else nothing,
        }
        rows = [
            {**named, **{name: float(one[place]) for name, one in columns.items()}, "n": self.n}
            for place, named in self._places()
        ]
        frame: DataFrame = pandas.DataFrame(rows)
        return frame

    def _places(self) -> list[tuple[tuple[int, ...], dict[str, str]]]:
        """Every cell, with labels and, where they are known, tokens."""
        found = []
        for place in itertools.product(*(range(len(axis.labels)) for axis in self.axes)):
            named: dict[str, str] = {}
            for axis, i in zip(self.axes, place, strict=True):
                named[axis.name] = axis.labels[i]
                if axis.tokens:
                    named["token"] = axis.tokens[i]
            found.append((place, named))
        return found

    def _interval(self) -> tuple[Tensor, Tensor]:
        return self.interval() if self.n > 1 else no_interval(self.values)

    def drawn(self) -> Drawn:
        """What pictures are made of."""
        single = (f"{a.name} {a.names()[0]}" for a in self.axes if len(a.labels) == 1)
        parts = [
            self.what,
            *self.part,
            *single,
            words(self.metric, 60),
        ]
        if self.agreement is not None:
            parts.append(str(self.agreement))
        ends = float(self.corrupted.mean()), float(self.clean.mean())
        return Drawn(self.axes, self.values, self._interval, self.n, tuple(parts), ends)

    @property
    def what(self) -> str:
        """What was patched, and how, in a few words."""
        return f"{self.method} {self.mode} of {self.site}"

    def view(self, title: str = "") -> HeatMap | Compared | EffectsView:
        """The normalised effects: a map over two axes, points with 95 % intervals over one; of
        three axes one map for each place of the shortest. Axes of one place do not count.

        Raises:
            ValueError: too many maps; choose a part by `at`.
        """
        drawn = self.drawn()
        ends = f"{drawn.ends[0]:.3g} corrupted, {drawn.ends[1]:.3g} clean"
        about = About(self.model, self.n, self.seed, " \u00b7 ".join([*drawn.parts, ends]))
        return picture(drawn, title, about)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The view; in words only where there is too much for a picture."""
        try:
            return super()._repr_mimebundle_(include, exclude)
        except ValueError as error:
            return {"text/plain": f"{self!r}\n{error}"}

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

    def save(self, path: str | Path) -> Path:
        """Write to a file: `.safetensors` (everything, read again by `load`), `.csv` (`to_frame`),
        or what views write.

        Raises:
            ArtefactError: there is no such folder.
            ValueError: the file has another suffix.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".safetensors":
                tensors = {name: getattr(self, name) for name in ("raw", "corrupted", "clean")}
                write_tensors(path, tensors, self._plain())
            case ".csv":
                self.to_frame().to_csv(path, index=False)
            case _:
                return self.view().save(path)
        return path

    def _plain(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "format": _FORMAT,
            "axes": [[axis.name, list(axis.labels), list(axis.tokens)] for axis in self.axes],
            "passes": dict(self.passes),
            "notes": list(self.notes),
            "part": list(self.part),
            "agreement": self.agreement and self.agreement.plain(),
        }

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
    axes = tuple(Axis(name, tuple(labels), tuple(tokens)) for name, labels, tokens in about["axes"])
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
        part=tuple(about["part"]),
        agreement=None if agreement is None else Agreement.read(agreement),
    )
