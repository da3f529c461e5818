"""Requests under one edit after another: next tokens, and answers where they are asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.geometry.lens import RefusalTokens
from analyses.geometry.requests import Requests
from analyses.resuming import Partial, Work
from model_adapters import Adapter, Batch
from regap_interp.adaptive.outcomes import Refused, judge
from regap_interp.adaptive.runs import kl_of_items
from regap_interp.adaptive.search import degenerate
from regap_interp.adaptive.signals import refusal_coordinate
from regap_interp.directions import Direction
from regap_interp.graph import Graph

Right = Callable[[str, str], bool]
"""Tells from a request's id and an answer whether it is the right one."""


@dataclass
class Running:
    """What all jobs share: encoded requests, and the bare model's logits."""

    adapter: Adapter
    requests: Requests
    refusal: Mapping[int, Direction]
    tokens: RefusalTokens | None
    refused: Refused | None
    right: Right | None
    max_new_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        self.batches = self.requests.batches(self.adapter, self.batch_size)
        self.outputs = {
            str(layer): refusal_coordinate(layer, one) for layer, one in self.refusal.items()
        }
        self.bare_logits: dict[int, Tensor] = {}

    @property
    def answering(self) -> bool:
        """Whether whole answers are generated."""
        return self.refused is not None or self.right is not None

    @property
    def reads(self) -> tuple[str, ...]:
        """What is read of every request: layers of coordinates, then outcomes."""
        found = list(self.outputs)
        if self.tokens is not None:
            found += ["log_odds", "opens"]
        found.append("kl")
        if self.answering:
            found.append("degenerate")
        if self.refused is not None:
            found.append("refused")
        if self.right is not None:
            found.append("right")
        return tuple(found)

    def check(self, graph: Graph) -> None:
        Graph(*graph.edits, outputs=self.outputs).check(self.adapter)

    def nothing(self, jobs: int, recipe: str) -> Partial:
        """Before the first pass."""
        shape = (jobs, len(self.reads), len(self.requests))
        values = torch.full(shape, math.nan, dtype=torch.float64)
        return Partial(
            "sweep", recipe, {"values": values}, torch.zeros(jobs, shape[2], dtype=torch.bool)
        )

    def run(self, work: Work, graphs: Sequence[Graph]) -> None:
        """Whatever is left of the jobs, batch by batch."""
        for job, graph in enumerate(graphs):
            start = 0
            for number, batch in enumerate(self.batches):
                rows = list(range(start, start + len(batch)))
                start += len(batch)
                if not bool(work.done[job, rows].all()):
                    found = self._batch(graph, batch, number, rows)
                    values = torch.stack([found[name] for name in self.reads])
                    work.keep((job, rows), {"values": values})

    def _batch(
        self, graph: Graph, batch: Batch, number: int, rows: Sequence[int]
    ) -> dict[str, Float[Tensor, "row"]]:
        found = self._next_token(graph, batch, number, ~self.requests.harmful[list(rows)])
        if self.answering:
            answers = self._answers(graph, batch)
            found["degenerate"] = torch.tensor([degenerate(one) for one in answers]).double()
            if self.refused is not None:
                found["refused"] = judge(answers, self.refused).refused.double()
            if self.right is not None:
                said = zip((self.requests.ids[row] for row in rows), answers, strict=True)
                found["right"] = torch.tensor([self.right(*one) for one in said]).double()
        return found

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
            asked = logits if self.tokens.rows is None else logits[:, list(self.tokens.rows)]
            found["log_odds"] = self.tokens.log_odds(asked)
            wanted = torch.tensor(self.tokens.refusing)
            found["opens"] = torch.isin(logits.argmax(dim=1), wanted).double()
        if not graph.edits:
            self.bare_logits[number] = logits[benign]
        if number not in self.bare_logits:  # the bare model was run before an interrupt
            bare = Graph().run(self.adapter, batch.to(self.adapter.device), logits=True)
            assert bare.logits is not None
            self.bare_logits[number] = bare.logits.detach().cpu()[benign]
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
