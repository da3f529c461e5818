"""Requests under one edit after another: next tokens, and answers where they are asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry.lens import RefusalTokens
from analyses.geometry.requests import Requests
from analyses.geometry.sweeps import Cell
from model_adapters import Adapter, Batch
from regap_interp.adaptive.outcomes import Refused, judge
from regap_interp.adaptive.runs import kl_of_items
from regap_interp.adaptive.search import degenerate
from regap_interp.adaptive.signals import refusal_coordinate
from regap_interp.directions import Direction
from regap_interp.graph import Graph
from regap_interp.intervals import Rate, cluster_bootstrap
from regap_interp.separability import separation

Right = Callable[[str, str], bool]
"""Tells from a request's id and an answer whether it is the right one."""


@dataclass
class Running:
    """What all cells share: encoded requests, and the bare model's logits."""

    adapter: Adapter
    requests: Requests
    refusal: Mapping[int, Direction]
    tokens: RefusalTokens | None
    refused: Refused | None
    right: Right | None
    max_new_tokens: int
    resamples: int
    confidence: float
    seed: int
    batch_size: int

    def __post_init__(self) -> None:
        self.batches = self.requests.batches(self.adapter, self.batch_size)
        self.outputs = {
            str(layer): refusal_coordinate(layer, one) for layer, one in self.refusal.items()
        }
        self.bare_logits: list[Tensor] = []
        self.done = 0

    def check(self, graph: Graph) -> None:
        Graph(*graph.edits, outputs=self.outputs).check(self.adapter)

    def cell(
        self, arm: str, layer: int | None, strength: float, graph: Graph, tick: Callable[[], None]
    ) -> Cell:
        parts: dict[str, list[Tensor]] = {}
        answers: list[str] = []
        start = 0
        for number, batch in enumerate(self.batches):
            benign = ~self.requests.harmful[start : start + len(batch)]
            for name, value in self._next_token(graph, batch, number, benign).items():
                parts.setdefault(name, []).append(value)
            if self.refused is not None or self.right is not None:
                answers += self._answers(graph, batch)
            start += len(batch)
            self.done += 1
            tick()
        read = {name: torch.cat(found) for name, found in parts.items()}
        separations = {
            at: separation(read.pop(str(at)), self.requests.harmful) for at in self.refusal
        }
        return Cell(arm, layer, strength, separations, self._outcomes(read, answers))

    def _next_token(
        self, graph: Graph, batch: Batch, number: int, benign: Bool[Tensor, "row"]
    ) -> dict[str, Float[Tensor, "row"]]:
        """Coordinates of one batch by layer, and what its logits say."""
        whole = Graph(*graph.edits, outputs=self.outputs)
        run = whole.run(self.adapter, batch.to(self.adapter.device), logits=True)
        assert run.logits is not None
        found = {name: run[name].detach().to("cpu", torch.float64) for name in self.outputs}
        logits = run.logits.detach().cpu()
        if self.tokens is not None:
            rows = self.tokens.rows
            asked = logits if rows is None else logits[:, list(rows)]
            found["log_odds"] = self.tokens.log_odds(asked)
            wanted = torch.tensor(self.tokens.refusing)
            found["opens"] = torch.isin(logits.argmax(dim=1), wanted).double()
        if number == len(self.bare_logits):  # the bare model comes first
            self.bare_logits.append(logits[benign])
        both = [
            one.double().log_softmax(dim=1) for one in (self.bare_logits[number], logits[benign])
        ]
        kl = torch.full((len(batch),), math.nan, dtype=torch.float64)
        kl[benign] = kl_of_items(*both)
        return {**found, "kl": kl}

    def _answers(self, graph: Graph, batch: Batch) -> tuple[str, ...]:
        here = batch.to(self.adapter.device)
        if not graph.edits:
            return self.adapter.generate(here, max_new_tokens=self.max_new_tokens).texts
        with graph.on(self.adapter) as steered:
            return steered.generate(here, max_new_tokens=self.max_new_tokens).texts

    def _outcomes(self, read: dict[str, Tensor], answers: Sequence[str]) -> dict[str, Rate]:
        if answers:
            read["degenerate"] = torch.tensor([degenerate(one) for one in answers]).double()
        if self.refused is not None:
            read["refused"] = judge(answers, self.refused).refused.double()
        if self.right is not None:
            pairs = zip(self.requests.ids, answers, strict=True)
            read["right"] = torch.tensor([self.right(name, said) for name, said in pairs]).double()
        found = {}
        for name, values in read.items():
            for kind, harmful in (("harmful", True), ("benign", False)):
                rows = self.requests.rows(harmful=harmful)
                if rows and not (harmful and name in ("kl", "right")):
                    found[f"{name}.{kind}"] = self._rate(values[rows], rows)
        return found

    def _rate(self, values: Float[Tensor, "item"], rows: Sequence[int]) -> Rate:
        clusters = [self.requests.cluster[row] for row in rows]
        if len(set(clusters)) < 2:
            return Rate(float(values.mean()), len(values), math.nan, math.nan)
        return cluster_bootstrap(
            values,
            clusters,
            resamples=self.resamples,
            seed=self.seed,
            confidence=self.confidence,
        )
