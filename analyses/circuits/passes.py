"""Many passes with parts ablated: what is finished is kept, and can be gone on from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.circuits.parts import Parts, Some
from analyses.patching.metrics import Coordinate
from analyses.resuming import Partial, Progress, Work
from regap_interp.artefact.provenance import data_fingerprint


class Passes:
    """The metric without each of some sets of parts."""

    def __init__(
        self,
        kind: str,
        parts: Parts,
        without: Sequence[Some],
        *,
        progress: Progress | bool,
        checkpoint: str | Path | None,
        resume: Partial | None,
    ) -> None:
        """Take over what was finished before; nothing is run.

        Raises:
            ValueError: that is of another call, or the checkpoint's folder is not there.
            ArtefactError: the checkpoint is damaged or of another make.
        """
        self.parts, self.without = parts, without
        shape = len(without), len(parts.runs.base.batch)
        fresh = Partial(
            kind,
            _recipe(parts, without),
            {"metric": torch.full(shape, torch.nan, dtype=torch.float64)},
            torch.zeros(shape, dtype=torch.bool),
        )
        self.work = Work(fresh, resume=resume, checkpoint=checkpoint, progress=progress)

    def run(self) -> Float[Tensor, "item set"]:
        """What is left of them.

        Raises:
            Interrupted: on Ctrl-C; it carries what is finished.
        """
        work = self.work
        items = list(range(work.done.shape[1]))
        with work.running():
            for place in (~work.done.all(dim=1)).nonzero().flatten().tolist():
                found = self.parts.ablated(self.without[place])
                work.keep((place, items), {"metric": found})
        return work.tensors["metric"].T


def _recipe(parts: Parts, without: Sequence[Some]) -> str:
    runs = parts.runs
    metric = runs.reader.metric
    along = metric.direction if isinstance(metric, Coordinate) else None
    return data_fingerprint(
        {
            "model": runs.adapter.fingerprint,
            "metric": metric.name,
            "direction": None if along is None else [along.vector, along.centre],
            "runs": [one.sites["embed", None] for one in (runs.base, runs.other)],
            "positions": [runs.mask, runs.fill],
            "without": [sorted(map(parts.name, some)) for some in without],
        }
    )
