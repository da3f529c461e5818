"""One running pass: edits and reads of its sites as the model reaches them."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model_adapters.batch import Positions
from regap_interp.graph.apply import edited
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.nodes import At, Number, Read, Steps
from regap_interp.graph.places import Place, indices, label, place, span_mask
from regap_interp.graph.values import Value, Values, exact, reads_below


class Pass:
    """What is done at the sites of one pass over a batch, or over some of its rows."""

    def __init__(
        self,
        values: Values,
        prompt: Positions,
        edits: Iterable[Edit],
        reads: Iterable[Read],
        *,
        rows: Int[Tensor, "row"] | None = None,
        unknown: frozenset[Read] = frozenset(),
        step: int | None = None,
        put: Callable[[Read, Value], None] | None = None,
    ) -> None:
        """Prepare a pass.

        Args:
            values: Where reads go and strengths come from.
            prompt: What stands at every position of the whole batch.
            edits: Edits of this pass and phase.
            reads: Reads of this pass and phase.
            rows: The batch's rows that the pass runs; None for all.
            unknown: Reads of passes that have not run: gates on them count as false.
            step: The step of decoding, from 1; None in the prefill.
            put: Takes what is read; by default it goes into `values`.
        """
        self.values, self.prompt, self.rows = values, prompt, rows
        self.unknown, self.step = unknown, step
        self.put = put or self._put
        n_layers = values.adapter.n_layers
        self.edits: dict[Place, list[Edit]] = defaultdict(list)
        self.reads: dict[Place, list[Read]] = defaultdict(list)
        for edit in edits:
            self.edits[place(edit.site, edit.layer, n_layers)].append(edit)
        for read in reads:
            self.reads[place(read.site, read.layer, n_layers)].append(read)
        self.strengths: dict[Edit, Tensor] = {}
        """Of every edit made so far, `[batch]`."""
        self.doses: dict[Edit, Tensor] | None = None
        """|edited - before| / |before| at every touched position, if somebody wants to know."""

    def visit(self, where: Place, states: Tensor) -> Tensor | None:
        """Read and edit the site at `where`; returns the states if they changed."""
        new: Tensor | None = None
        waiting = list(self.reads.get(where, ()))
        for edit in self.edits.get(where, ()):
            needed = frozenset().union(*(reads_below(node) for node in edit.inputs()))
            # What decides an edit is read before it, everything else after all edits.
            for read in [one for one in waiting if one in needed and one.under is None]:
                waiting.remove(read)
                self.put(read, self._taken(read, states if new is None else new))
            made = self._made(edit, states if new is None else new)
            new = made if made is not None else new
        for read in waiting:
            self.put(read, self._taken(read, states if new is None else new))
        return new

    def strength(self, edit: Edit) -> Float[Tensor, "batch"]:
        """How strong an edit is in every row of the batch; rows that cannot be told are 0.

        Raises:
            GraphError: for a strength that is not a finite number.
        """
        found = self.values.numbers(edit.strength, self.unknown)
        rests_on = frozenset().union(*(reads_below(node) for node in edit.inputs()))
        if not self.unknown.isdisjoint(rests_on):
            more = [one for one in (edit.value, edit.to) if one is not None]
            if any(not self.unknown.isdisjoint(reads_below(one)) for one in more):
                return torch.zeros_like(found)
            return found.nan_to_num(0.0)
        within = found if self.rows is None else found[self.rows.cpu()]
        if not within.isfinite().all():
            wrong = (~found.isfinite()).nonzero().flatten().tolist()
            raise GraphError(
                f"{edit.op} {label(edit.site, edit.layer)}: its strength is not a finite number in "
                f"rows {wrong} (a mean over no positions, say); gate it with select"
            )
        return found

    def _made(self, edit: Edit, states: Tensor) -> Tensor | None:
        if isinstance(edit.at, Steps) and not _within(edit.at, self.step):
            return None
        strength = self.strength(edit)
        self.strengths[edit] = strength
        if isinstance(edit.strength, Number) and edit.strength.value == 0:
            return None
        to = None if edit.to is None else self.values.numbers(edit.to, self.unknown)
        value = self.values.of(edit.value, self.unknown)
        if self.rows is not None:
            at = self.rows.cpu()
            strength, to = strength[at], None if to is None else to[at]
            value = _rows_of(value, self.rows, len(self.values))
        chosen = self._chosen(edit.at, states)
        order = None
        if isinstance(edit.at, tuple) and self.step is None:
            order = self._kept(self._of_rows(indices(edit.at, self.prompt)), states)
        new = edited(edit, states, chosen, strength, value, to, order)
        if new is not None and self.doses is not None:
            touched = (chosen & (strength != 0)[:, None]).to(states.device)
            old, moved = exact(states)[touched], exact(new - states)[touched]
            self.doses[edit] = moved.flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
        return new

    def _chosen(self, at: At, states: Tensor) -> Bool[Tensor, "row position"]:
        if self.step is not None:
            return torch.ones(states.shape[:2], dtype=torch.bool)
        mask = self._of_rows(span_mask(at, self.prompt))
        # A model may compute logits of the last positions only.
        return mask[:, mask.shape[1] - states.shape[1] :]

    def _taken(self, read: Read, states: Tensor) -> Value:
        part = states if read.head is None else states[:, :, read.head]
        row = torch.arange(len(part), device=part.device)
        if self.step is not None:
            return Value(part[:, -1].clone())
        if read.at == "last":
            last = self._kept(self._of_rows(self.prompt.last), part).to(part.device)
            return Value(part[row, last])
        if isinstance(read.at, tuple):
            chosen = self._kept(self._of_rows(indices(read.at, self.prompt)), part)
            chosen = chosen.to(part.device)
            taken = part[row[:, None], chosen]
            return Value(taken[:, 0] if len(read.at) == 1 else taken)
        self._kept_all(read.at, part)
        mask = self._chosen(read.at, part).to(part.device)
        inside = mask.reshape(*mask.shape, *[1] * (part.ndim - 2))
        return Value(part.masked_fill(~inside, torch.nan), mask)

    def _kept(self, places: Tensor, states: Tensor) -> Tensor:
        """Positions of the prompt among those that the states hold, which may be the last few."""
        kept = places - (self.prompt.roles.shape[1] - states.shape[1])
        if bool((kept < 0).any()):
            raise _cut_off(states)
        return kept

    def _kept_all(self, at: At, states: Tensor) -> None:
        """Refuse positions of the prompt that the states do not hold."""
        mask = self._of_rows(span_mask(at, self.prompt))
        if bool(mask[:, : mask.shape[1] - states.shape[1]].any()):
            raise _cut_off(states)

    def _of_rows(self, whole: Tensor) -> Tensor:
        return whole if self.rows is None else whole[self.rows.to(whole.device)]

    def _put(self, read: Read, value: Value) -> None:
        if self.rows is not None:
            value = merged(self.values.reads[read], value, self.rows)
        self.values.reads[read] = value


def _cut_off(states: Tensor) -> GraphError:
    return GraphError(
        f"the model computed this site at its last {states.shape[1]} positions only; ask for "
        "those, or run it with logits_to_keep=0"
    )


def merged(whole: Value, part: Value, rows: Int[Tensor, "row"]) -> Value:
    """`whole` with some rows taken from `part`."""
    tensor = whole.tensor.clone()
    tensor[rows.to(tensor.device)] = part.tensor
    return Value(tensor, whole.mask)


def _rows_of(value: Value, rows: Tensor, n: int) -> Value:
    """The rows of a value that has some; a constant shared by all rows has one."""
    if value.tensor.shape[0] != n:
        return value
    at = rows.to(value.tensor.device)
    return Value(value.tensor[at], None if value.mask is None else value.mask[at])


def _within(steps: Steps, step: int | None) -> bool:
    return step is not None and steps.start <= step and (steps.stop is None or step < steps.stop)
