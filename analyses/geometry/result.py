"""What every result can do: a table, a picture, files. Nothing prints or shows itself."""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_adapters import Adapter
from regap_interp._edited import digest_of_edits
from regap_interp.artefact.provenance import data_fingerprint, processor_name, template_hash
from regap_interp.directions import Origin
from regap_interp.graph.graph import Graph
from regap_interp.statistics import Rule
from regap_interp.views import About, Shown
from regap_interp.views.view import writable

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Source:
    """Where the states come from that numbers were made of."""

    model: str
    """`Adapter.model_id`."""
    fingerprint: str
    """`Adapter.fingerprint`."""
    site: str
    """Such as "resid_post"."""
    at: str
    """Prompt positions: "last", another span (its mean), or indices such as "-2"."""
    edits: str | None = None
    """Digest of the edits the model ran under; None for the model untouched."""

    @classmethod
    def of(
        cls, adapter: Adapter, *, site: str, at: Rule = "last", graph: Graph | None = None
    ) -> "Source":
        """That of a model as it stands, read `at` a rule under graphs, installed ones included."""
        where = at if isinstance(at, str) else ",".join(map(str, at))
        edits = digest_of_edits(adapter, graph)
        return cls(adapter.model_id, adapter.fingerprint, site, where, edits)

    def origin(self, layer: int) -> Origin:
        """What directions made here are marked with."""
        return Origin(self.fingerprint, self.site, layer, self.at, self.edits)


def recipe(adapter: Adapter, source: Source, **parts: Any) -> str:
    """sha256 in hex over all that numbers depend on: the parts, where they are read, and what the
    model's fingerprint leaves out: precision, processor and chat template."""
    processor: Any = adapter.processor
    readers: list[Any] = [
        getattr(processor, name, None)
        for name in ("image_processor", "video_processor", "feature_extractor")
    ]
    how = [
        str(next(adapter.module.parameters()).dtype),
        processor_name(adapter),
        template_hash(adapter),
        *(one.to_json_string() if hasattr(one, "to_json_string") else None for one in readers),
    ]
    return data_fingerprint({"source": asdict(source), "how": how, **parts})


class Result(Shown):
    """A frozen dataclass of numbers."""

    source: Source
    seed: int

    @abstractmethod
    def columns(self) -> dict[str, list[Any]]:
        """The numbers as a tidy table; NaN where nothing could be measured."""

    def about(self) -> dict[str, Any]:
        """What holds for the whole table, for its file and its caption."""
        return {"kind": type(self).__name__, "seed": self.seed, "source": asdict(self.source)}

    def to_frame(self) -> "DataFrame":
        """`columns` as a pandas DataFrame; lone surrogates, which it cannot hold, are "?".

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas, which is not installed: pip install "
                "'regap-interp[views]'; columns() does without"
            ) from error
        found = self.columns().items()
        table: DataFrame = pandas.DataFrame(
            {writable(name): [writable(one) for one in column] for name, column in found}
        )
        return table

    def save(self, path: str | Path) -> Path:
        """Write to a file: `.json` (`about` and `columns`; what is not finite becomes null), `.csv`
        (`columns`), or a picture: `.html`, `.png`, `.svg`, `.pdf`.

        Raises:
            ImportError: pandas or matplotlib is not installed, for all but `.json`.
            ValueError: The file has another suffix.
        """
        path = Path(path)
        match path.suffix.lower():
            case ".json":
                found = {**self.about(), "columns": self.columns()}
                text = json.dumps(_plain(found), indent=1, allow_nan=False)
                path.write_text(text + "\n", encoding="utf-8")
            case ".csv":
                self.to_frame().to_csv(path, index=False)
            case _:
                return super().save(path)
        return path

    def _about(self, n: int, note: str) -> About:
        """Where the numbers come from, for captions."""
        edited = "edited model" if self.source.edits else ""
        where = f"{self.source.site}, {self.source.at} position"
        words = "; ".join(part for part in (where, edited, note) if part)
        return About(model=self.source.model, n=n, seed=self.seed, note=words)


def intervals(confidence: float, resamples: int) -> str:
    """What intervals are, for captions."""
    return f"{100 * confidence:g} % intervals, {resamples} resamples of clusters"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
