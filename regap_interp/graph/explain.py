"""A graph's plan in words: passes, layers, rows, cost and dose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.batch import Positions
from regap_interp.graph import engine
from regap_interp.graph.ahead import differing, moves, why_not_resumed
from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import MODALITIES, Node, Read
from regap_interp.graph.passes import Pass
from regap_interp.graph.places import label
from regap_interp.graph.plan import LAST_OF_LAYER, Plan, plan
from regap_interp.graph.values import Values
from regap_interp.graph.words import describe_edit


@dataclass(frozen=True)
class Dose:
    """How far one edit moved the states it touched."""

    edit: str
    positions: int
    """Positions it touched."""
    mean: float
    """Mean over touched positions of |edited - before| / |before|."""
    largest: float
    """The largest of them."""


@dataclass(frozen=True)
class Explanation:
    """What a graph will do. Costs are shares of one prefill's decoder layers."""

    lines: tuple[str, ...]
    least: float
    """Extra cost of a prefill when every gate stays closed."""
    most: float
    """Extra cost when every gate opens in every row."""
    resumed: bool
    """Whether other passes run only the layers that differ."""
    doses: tuple[Dose, ...] | None
    """Measured on the batch; None without one."""

    def __str__(self) -> str:
        """Line by line."""
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        # Exported notebooks give elements of results a proportional font.
        return '<pre style="font-family:monospace">' + escape(str(self)) + "</pre>"


def explain(
    edits: Sequence[Edit], outputs: Mapping[str, Node], adapter: Adapter, batch: Batch | None
) -> Explanation:
    """What a checked graph will do on a model; see `Explanation`."""
    planned = plan(edits, outputs, adapter.n_layers)
    lines = [f"graph for {adapter.model_id}, {adapter.n_layers} layers"]
    lines += [f"  edit    {describe_edit(edit)} ({edit.phase})" for edit in planned.edits]
    others = [read for branch in planned.branches for read in branch.reads]
    for read in (*planned.reads, *others):
        lines.append(f"  read    {_read(read)}")
    modalities = MODALITIES if batch is None else batch.modalities
    resumed, costs = _passes(planned, adapter, tuple(modalities), lines)
    least = sum(low for low, _ in costs) / len(costs)
    most = sum(high for _, high in costs) / len(costs)
    kinds = dict.fromkeys(modalities)
    for kind in kinds:
        low, high = costs[modalities.index(kind)]
        lines.append(f"  cost    {kind} rows: {_share(low, high)} of a prefill more")
    doses = None if batch is None else _doses(edits, outputs, adapter, batch)
    for dose in doses or ():
        lines.append(
            f"  dose    {dose.edit}: |edit| / |h| {dose.mean:.3f} on average, at most "
            f"{dose.largest:.3f}, over {dose.positions} positions"
        )
    return Explanation(tuple(lines), least, most, resumed, doses)


def _read(read: Read) -> str:
    where = f"{label(read.site, read.layer)} at {read.at!r} ({read.phase})"
    if read.under is None:
        return where
    if not read.under:
        return f"{where}, of the bare model"
    return f"{where}, under {'; '.join(describe_edit(edit) for edit in read.under)}"


def _passes(
    planned: Plan, adapter: Adapter, modalities: tuple[str, ...], lines: list[str]
) -> tuple[bool, list[tuple[float, float]]]:
    """Adds the passes to `lines`; returns the least and most extra cost of each modality."""
    n = planned.n_layers
    if not planned.branches:
        lines.append("  passes  one: nothing runs twice")
        return True, [(0.0, 0.0)] * len(modalities)
    obstacle = why_not_resumed(planned, adapter)
    if obstacle is not None:
        cost = sum(min(branch.deepest[0] + 1, n) for branch in planned.branches) / n
        lines.append(
            f"  passes  {len(planned.branches)} before the main one, each from the start: "
            f"{obstacle}"
        )
        return False, [(cost, cost)] * len(modalities)
    first, decided = planned.first_layer, planned.decided[0]
    if first > decided:
        lines.append("  passes  one: what other passes tell is known before they differ from it")
    else:
        lines.append(
            f"  passes  one, which goes on as if gates were closed; layers {first} to {decided} "
            f"run again for rows of other passes, and for rows whose gate opened at layer {decided}"
        )
    everything = planned.unknown | frozenset(planned.reads)
    values, nowhere = Values(adapter, modalities), Positions()
    early = (planned.decided[0], LAST_OF_LAYER)
    edits = [e for e in planned.edits if e.phase != "decode" and planned.place(e) <= early]
    main = Pass(values, nowhere, edits, (), unknown=everything)
    assumed = {edit: main.strength(edit) for edit in edits}
    values.guess = True
    opened = {edit: main.strength(edit) for edit in edits}
    values.guess = False
    waits = torch.zeros(len(modalities), dtype=torch.bool)
    for edit in (edit for edit in edits if planned.foretold(edit)):
        waits |= (opened[edit] != assumed[edit]) | moves(edit, planned.unknown)
    extra = torch.zeros(len(modalities))
    for branch in planned.branches:
        lane = Pass(values, nowhere, branch.edits, (), unknown=everything)
        rows = differing(branch, lane, assumed.items(), planned)
        extra[rows] += max(0, branch.deepest[0] + 1 - planned.first_layer)
    whole = max(0, planned.decided[0] + 1 - planned.first_layer)
    return True, [
        (float(cost) / n, (float(cost) + whole * bool(wait)) / n)
        for cost, wait in zip(extra, waits, strict=True)
    ]


def _doses(
    edits: Sequence[Edit], outputs: Mapping[str, Node], adapter: Adapter, batch: Batch
) -> tuple[Dose, ...]:
    moved: dict[Edit, Tensor] = {}
    installation = engine.Installation(edits, outputs, resume=False)
    engine.run_prefill(adapter, batch, installation, None, doses=moved)
    return tuple(
        Dose(
            f"{edit.op} {label(edit.site, edit.layer)}", len(of), float(of.mean()), float(of.max())
        )
        for edit, of in moved.items()
    )


def _share(low: float, high: float) -> str:
    return f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
