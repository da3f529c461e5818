"""What other passes tell in a running prefill, found by running only the layers in between.

The main pass goes on as if every gate that other passes decide were closed, up to the layer where
the answers are known. There the other passes are run from the first layer that can differ, for the
rows in which they do, and then the main pass is run again for the rows whose gate opened and put
right, keys and values too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model_adapters import Adapter
from model_adapters.resume import LayerCalls, RowCache, resume_obstacle
from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import Read
from regap_interp.graph.passes import Pass
from regap_interp.graph.places import Place
from regap_interp.graph.plan import LAST_OF_LAYER, Branch, Plan, same_effect
from regap_interp.graph.values import Value, Values, reads_below


@dataclass(eq=False)
class Stage:
    """Which pass the hooks on layers serve."""

    running: Pass | None = None


class Ahead:
    """The other passes of one prefill, until they are decided."""

    def __init__(
        self,
        values: Values,
        plan: Plan,
        call: Any,
        stage: Stage,
        recomputed: Int[Tensor, "batch"],
    ) -> None:
        """Prepare to look ahead.

        Args:
            values: Where reads go.
            plan: With branches.
            call: What the prefill holds.
            stage: Told which pass runs while layers are run again.
            recomputed: Counts the layers run again for each row.
        """
        self.plan, self.call, self.stage, self.recomputed = plan, call, stage, recomputed
        self.values = values
        self.end: Place = (plan.decided[0], LAST_OF_LAYER)
        self.main = Pass(
            values,
            call,
            [edit for edit in plan.edits if edit.phase != "decode"],
            [read for read in plan.reads if read.phase == "prefill"]
            + [read for branch in plan.branches for read in branch.reads],
            unknown=plan.unknown,
            put=self._take,
        )
        self._calls: LayerCalls | None = None
        self._snapshot: Tensor | None = None
        self._shadows: dict[Read, Value] = {}

    @property
    def places(self) -> set[Place]:
        """Where it has to be asked, beside the places of the main pass."""
        edits = [edit for branch in self.plan.branches for edit in branch.edits]
        return {self.plan.snapshot, self.end, *map(self.plan.place, edits)}

    def listen(self) -> LayerCalls:
        """Begin to remember how layers are called; to be removed after the pass."""
        layers = range(self.plan.first_layer, self.plan.decided[0] + 1)
        self._calls = LayerCalls(self.values.adapter, layers)
        return self._calls

    def visit(self, where: Place, states: Tensor) -> Tensor | None:
        """The main pass at a place up to where everything is decided."""
        if where == self.plan.snapshot:
            self._snapshot = states
        new = self.main.visit(where, states)
        return self._decide(states if new is None else new) if where == self.end else new

    def _take(self, read: Read, value: Value) -> None:
        """What the main pass has where another pass reads holds for rows in which both agree."""
        (self.values.reads if read.under is None else self._shadows)[read] = value

    def _decide(self, states: Float[Tensor, "batch position d_model"]) -> Tensor:
        main = self.main
        assumed = dict(main.strengths)
        made = [(e, assumed[e]) for of in main.edits.values() for e in of if e in assumed]
        for branch in self.plan.branches:
            lane = Pass(self.values, self.call, branch.edits, branch.reads)
            rows = differing(branch, lane, made, self.plan)
            for read in branch.reads:
                self.values.reads[read] = self._shadows[read]
            if len(rows):
                lane.rows = rows
                self._rerun(lane, branch.deepest[0], keep=False)
        main.unknown = frozenset()
        wrong = torch.zeros(len(self.values), dtype=torch.bool)
        for edit in (edit for edit in assumed if self.plan.foretold(edit)):
            main.strengths[edit] = true = main.strength(edit)
            wrong |= (true != 0) if moves(edit, self.plan.unknown) else (true != assumed[edit])
        rows = wrong.nonzero().flatten()
        if len(rows):
            again = Pass(
                self.values,
                self.call,
                [edit for of in main.edits.values() for edit in of],
                [read for of in main.reads.values() for read in of if read.under is None],
                rows=rows,
            )
            found, cache = self._rerun(again, self.plan.decided[0], keep=True)
            cache.write_back()
            main.strengths.update(again.strengths)
            states = states.index_copy(0, rows.to(states.device), found)
        self._snapshot = None
        self._shadows = {}
        return states

    def _rerun(self, lane: Pass, upto: int, *, keep: bool) -> tuple[Tensor, RowCache]:
        """Run the layers in between again for the rows of `lane`."""
        assert self._snapshot is not None and lane.rows is not None and self._calls is not None
        rows = lane.rows.to(self._snapshot.device)
        layers = range(self.plan.first_layer, upto + 1)
        past = self.call.past
        # A branch is read and forgotten: it needs keys and values only of earlier positions.
        own = self._calls.cache(layers[0]) if layers and (keep or past) else None
        scratch = RowCache(own, layers, rows, past)
        before, self.stage.running = self.stage.running, lane
        try:
            states = self._snapshot[rows]
            if self.plan.snapshot[1] == LAST_OF_LAYER:
                edited = lane.visit(self.plan.snapshot, states)
                states = states if edited is None else edited
            for layer in layers:
                states = self._calls.rerun(layer, states, rows, scratch.cache)
        finally:
            self.stage.running = before
        self.recomputed[lane.rows] += len(layers)
        return states, scratch


def why_not_resumed(plan: Plan, adapter: Adapter) -> str | None:
    """Why other passes run on their own before the main one, if they do."""
    if plan.decided >= (plan.n_layers, 0):
        return "a value of another pass is read after the last layer"
    return resume_obstacle(adapter, max(plan.snapshot[0], 0))


def differing(
    branch: Branch,
    lane: Pass,
    made: Iterable[tuple[Edit, Float[Tensor, "batch"]]],
    plan: Plan,
) -> Int[Tensor, "row"]:
    """Rows in which a branch does something else than the main pass has done so far.

    Args:
        branch: The other pass.
        lane: The same, ready to run.
        made: Every edit that the main pass has made, as often as it was made, and how strongly.
        plan: The passes.
    """
    kinds: list[Edit] = []

    def kind(edit: Edit) -> int:
        for number, known in enumerate(kinds):
            if same_effect(edit, known):
                return number
        kinds.append(edit)
        return len(kinds) - 1

    own = _in_order([(edit, lane.strength(edit)) for edit in branch.edits], plan)
    main = _in_order(made, plan)

    def effects(of: list[tuple[int, Tensor]], row: int) -> list[tuple[int, float]]:
        return [(number, float(strength[row])) for number, strength in of if strength[row] != 0]

    mine, theirs = ([(kind(edit), strength) for edit, strength in of] for of in (own, main))
    rows = [row for row in range(len(lane.values)) if effects(mine, row) != effects(theirs, row)]
    return torch.tensor(rows, dtype=torch.long)


def moves(edit: Edit, unknown: frozenset[Read]) -> bool:
    """Whether what an edit puts in, and not only how strongly, waits for another pass."""
    more = [one for one in (edit.value, edit.to) if one is not None]
    return any(not unknown.isdisjoint(reads_below(one)) for one in more)


def _in_order(made: Iterable[tuple[Edit, Tensor]], plan: Plan) -> list[tuple[Edit, Tensor]]:
    """Edits in the order in which a pass makes them, as far as it is decided by other passes."""
    end = (plan.decided[0], LAST_OF_LAYER)
    within = [one for one in made if plan.place(one[0]) <= end]
    return sorted(within, key=lambda one: plan.place(one[0]))
