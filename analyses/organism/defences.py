"""Every arm on the same requests: what is refused, what is answered, and what it costs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.organism.answers import ROWS, Graded, Tick, answer, encode_samples, grade
from analyses.organism.arms import ARMS, Frozen
from model_adapters import Adapter, Batch
from model_adapters.organism.world import SETTINGS, Sample, Setting, draw_samples
from regap_interp.intervals import Rate, cluster_bootstrap
from regap_interp.paired import McNemar, mcnemar

OUTCOMES = {
    "harmful.refused": (True, "refused"),
    "harmful.answered": (True, "tool"),
    "benign.refused": (False, "refused"),
    "benign.answered": (False, "right"),
    "benign.tool": (False, "tool"),
}
"""Cell -> (harmful requests or benign ones, outcome that is counted)."""
Key = tuple[str, Setting, bool]
"""(arm, modality, harmful)"""


@dataclass(frozen=True, eq=False)
class Requests:
    """Samples encoded once, for every arm."""

    samples: Mapping[tuple[Setting, bool], Sequence[Sample]]
    batches: Mapping[tuple[Setting, bool], Sequence[Batch]]


def prepare(
    adapter: Adapter, *, n: int, seed: int, settings: Sequence[Setting] = SETTINGS
) -> Requests:
    """`n` harmful and `n` benign requests of the report split in every modality, levels 0 to 1."""
    samples = {
        (setting, harmful): draw_samples("report", setting, n, seed=seed, harmful=harmful)
        for setting in settings
        for harmful in (True, False)
    }
    rows = min(max(n // 4, 25), ROWS)  # several batches, each with a random direction of its own
    return Requests(
        samples, {key: encode_samples(adapter, of, rows=rows) for key, of in samples.items()}
    )


@dataclass(frozen=True, eq=False)
class Defences:
    """All arms, measured on the same requests."""

    graded: Mapping[Key, Graded]
    extra_layers: Mapping[Key, Float[Tensor, "item"]]
    """Decoder layers run beyond the request's own prefill, for each item."""
    n_layers: int
    settings: Sequence[Setting]

    @property
    def media(self) -> list[Setting]:
        """The modalities but text."""
        return [setting for setting in self.settings if setting != "text"]

    def cells(self) -> Iterator[tuple[str, Graded, str]]:
        """(name, answers, outcome) of every cell, such as "regap.image.harmful.refused"."""
        for arm in ARMS:
            for setting in self.settings:
                for cell, (harmful, outcome) in OUTCOMES.items():
                    yield f"{arm}.{setting}.{cell}", self.graded[arm, setting, harmful], outcome

    def rate(self, arm: str, setting: Setting, cell: str) -> Rate:
        """One cell, with Wilson's interval."""
        harmful, outcome = OUTCOMES[cell]
        return self.graded[arm, setting, harmful].rate(outcome)

    def compare(self, setting: Setting, cell: str, first: str, second: str) -> McNemar:
        """McNemar's test between two arms on the same requests."""
        harmful, outcome = OUTCOMES[cell]
        return mcnemar(
            *(getattr(self.graded[arm, setting, harmful], outcome) for arm in (first, second))
        )

    def difference(
        self, setting: Setting, cell: str, first: str, second: str, *, seed: int = 0
    ) -> Rate:
        """Rate under the first arm minus that under the second, resampling pairs of words."""
        harmful, outcome = OUTCOMES[cell]
        one, other = (self.graded[arm, setting, harmful] for arm in (first, second))
        lost = getattr(one, outcome).double() - getattr(other, outcome).double()
        return cluster_bootstrap(lost, one.clusters, seed=seed)

    def extra(self, arm: str, setting: Setting) -> float:
        """Mean extra layers of a request, harmful and benign alike, as a share of a prefill."""
        both = [self.extra_layers[arm, setting, harmful] for harmful in (True, False)]
        return float(torch.cat(both).mean()) / self.n_layers

    def as_json(self) -> dict[str, Any]:
        """Every cell, and ReGap against the fixed strong correction."""
        against = {
            f"{setting}.{cell}": dataclasses.asdict(self.compare(setting, cell, "regap", "strong"))
            for setting in self.media
            for cell in ("harmful.refused", "benign.answered")
        }
        extra = {
            f"{arm}.{setting}": self.extra(arm, setting)
            for arm in ARMS
            for setting in self.settings
        }
        return {
            "arms": {
                name: dataclasses.asdict(graded.rate(outcome))
                for name, graded, outcome in self.cells()
            },
            "mcnemar_regap_strong": against,
            "extra_layers": extra,
        }


def measure(
    adapter: Adapter,
    frozen: Frozen,
    requests: Requests,
    *,
    seed: int,
    tick: Tick | None = None,
) -> Defences:
    """Greedy answers to every request under every arm.

    Under the random control each batch has a direction of its own, so that several are drawn.
    """
    graded: dict[Key, Graded] = {}
    extra: dict[Key, Tensor] = {}
    for name in ARMS:
        fixed_arm = frozen.arm(name, seed=seed)
        for (setting, harmful), samples in requests.samples.items():
            texts: list[str] = []
            layers: list[Tensor] = []
            for number, batch in enumerate(requests.batches[setting, harmful]):
                arm = frozen.arm(name, seed=seed + number) if name == "random" else fixed_arm
                graph = arm.graph if arm.graph.edits else None
                said, runs = answer(adapter, [batch], graph, tick=tick)
                texts += said
                layers += [run.recomputed.double() for run in runs] or [torch.zeros(len(batch))]
            graded[name, setting, harmful] = grade(samples, texts)
            extra[name, setting, harmful] = torch.cat(layers).double().cpu()
    settings = list(dict.fromkeys(setting for setting, _ in requests.samples))
    return Defences(graded, extra, adapter.n_layers, settings)
