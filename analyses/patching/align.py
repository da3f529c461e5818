"""Which positions a patch goes to, and which positions of the other run its states come from."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Int
from torch import Tensor, tensor

from model_adapters import Batch
from model_adapters.batch import Role

One = int | str | range | tuple[int, ...]


@dataclass(frozen=True)
class PerItem:
    """Positions that differ from item to item, such as those of a word."""

    selectors: tuple[One, ...]
    """Of every item in order."""


Selector = One | PerItem
"""Positions of a prompt: an index from its first token (from its last, if negative), several
(`range(3, 7)`, `(3, 5)`), "last", "prompt", a role ("text", "special", "image", "audio", "video"),
one item of a medium ("image[1]"), or any of these for each item."""

Policy = Literal["same", "last", "delimiter", "mean", "repeat", "trim"]
"""How positions of two runs of different lengths belong together:

- "same": by index from the first token; only for prompts of the same length.
- "last": by index from the last token.
- "delimiter": a control token and its like, the k-th with the k-th.
- "mean": the mean over the source's positions goes to every target position.
- "repeat": the source's positions in order, over and over, until the target is full.
- "trim": in order, as far as both reach; the rest of the longer one is left alone.
"""

_ITEM = re.compile(r"(image|audio|video)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Pair:
    """Positions that are called differently in the two runs."""

    target: Selector
    """In the run that is patched."""
    source: Selector
    """In the run that the states come from."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the states for some positions of one row come from."""

    targets: Int[Tensor, "target"]
    """Positions in the patched run, padding counted."""
    sources: Int[Tensor, "target mixed"]
    """For each, the positions of the other run whose mean it gets."""


def label_of(position: Selector | Pair) -> str:
    """A short name for tables."""
    if isinstance(position, Pair):
        return f"{label_of(position.target)} <- {label_of(position.source)}"
    if isinstance(position, PerItem):
        return "per item"
    if isinstance(position, range) and position.step == 1:
        return f"{position.start}:{position.stop}"
    if isinstance(position, range | tuple):
        return "+".join(map(str, position))
    return str(position)


def resolve(batch: Batch, row: int, selector: Selector) -> list[int]:
    """Positions of a row in its batch, padding counted.

    Raises:
        ValueError: when the prompt has none of that name, or several items where one is meant.
    """
    if isinstance(selector, PerItem):
        if len(selector.selectors) != len(batch):
            raise ValueError(
                f"positions are given for {len(selector.selectors)} items; there are {len(batch)}"
            )
        selector = selector.selectors[row]
    prompt = batch.prompt_mask[row].nonzero().flatten().tolist()
    if isinstance(selector, str):
        return _named(batch, row, selector, prompt)
    wanted = [selector] if isinstance(selector, int) else list(selector)
    if not wanted:
        raise ValueError(f"row {row}: the positions {selector!r} are empty")
    for index in wanted:
        if not -len(prompt) <= index < len(prompt):
            raise ValueError(
                f"row {row} has {len(prompt)} prompt tokens; there is no position {index}"
            )
    found = [prompt[index] for index in wanted]
    if len(set(found)) != len(found):
        raise ValueError(f"row {row}: the positions {selector!r} name a token twice")
    return found


def _named(batch: Batch, row: int, name: str, prompt: list[int]) -> list[int]:
    if name == "prompt":
        return prompt
    if name == "last":
        return prompt[-1:]
    item = _ITEM.fullmatch(name)
    if item is not None:
        spans = getattr(batch, f"{item[1]}s")[row]
        if item[2] is None and len(spans) > 1:
            raise ValueError(
                f"row {row} holds {len(spans)} items of {item[1]}, so {name!r} is ambiguous; "
                f'name one: "{item[1]}[0]"'
            )
        number = int(item[2] or 0)
        if number >= len(spans):
            raise ValueError(f"row {row} holds {len(spans)} items of {item[1]}; no {name!r}")
        return list(spans[number].positions)
    if name not in ("text", "special"):
        raise ValueError(
            f'no positions are called {name!r}; say "last", "prompt", "text", "special", "image", '
            '"audio", "video" or "image[1]", or give indices'
        )
    found: list[int] = batch.mask(name)[row].nonzero().flatten().tolist()
    if not found:
        raise ValueError(f"row {row} has no {name} positions")
    return found


def align(
    target: Batch, source: Batch, row: int, position: Selector | Pair, policy: Policy
) -> Alignment:
    """Positions of a row of `target`, each with positions of the same row of `source`.

    Raises:
        ValueError: for positions that are not there, or a policy that leaves open what belongs
            together.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"no policy {policy!r}; they are {', '.join(get_args(Policy))}")
    chosen = position.target if isinstance(position, Pair) else position
    into = resolve(target, row, chosen)
    if isinstance(position, Pair):
        taken = resolve(source, row, position.source)
        return _zipped(into, taken, row, position, policy)
    if policy in ("mean", "repeat", "trim"):
        return _zipped(into, resolve(source, row, chosen), row, position, policy)
    return _paired(into, _COUNTED[policy](target, source, row, into))


def _zipped(
    into: list[int], taken: list[int], row: int, position: Selector | Pair, policy: Policy
) -> Alignment:
    """Two lists of positions, joined by a policy for lists."""
    if policy == "mean":
        return Alignment(tensor(into), tensor([taken] * len(into)))
    if policy == "repeat":
        return _paired(into, [taken[i % len(taken)] for i in range(len(into))])
    if policy == "trim":
        both = min(len(into), len(taken))
        return _paired(into[:both], taken[:both])
    if len(into) != len(taken):
        raise ValueError(
            f"row {row}: {label_of(position)} are {len(into)} positions of the patched run and "
            f"{len(taken)} of the other, so it is ambiguous which belong together; choose "
            'align="mean", "repeat" or "trim"'
        )
    return _paired(into, taken)


def _paired(into: list[int], taken: list[int]) -> Alignment:
    return Alignment(tensor(into), tensor([[one] for one in taken]))


def _same(target: Batch, source: Batch, row: int, into: list[int]) -> list[int]:
    ours, theirs = resolve(target, row, "prompt"), resolve(source, row, "prompt")
    if len(ours) != len(theirs):
        raise ValueError(
            f"row {row} has {len(ours)} prompt tokens in the patched run and {len(theirs)} in the "
            'other, so an index does not name the same place in both; choose align="last", '
            '"delimiter", "mean", "repeat" or "trim", or give Pair(target, source)'
        )
    return [theirs[ours.index(one)] for one in into]


def _last(target: Batch, source: Batch, row: int, into: list[int]) -> list[int]:
    ours, theirs = resolve(target, row, "prompt"), resolve(source, row, "prompt")
    behind = [len(ours) - ours.index(one) for one in into]
    if max(behind) > len(theirs):
        raise ValueError(
            f"row {row}: the other run has {len(theirs)} prompt tokens; none is the "
            f"{max(behind)}th from the end"
        )
    return [theirs[-one] for one in behind]


def _delimiter(target: Batch, source: Batch, row: int, into: list[int]) -> list[int]:
    ours, theirs = _controls(target, row), _controls(source, row)
    found = []
    for one in into:
        token = int(target.inputs["input_ids"][row, one])
        here, there = ours.get(token, []), theirs.get(token, [])
        if one not in here:
            raise ValueError(
                f'row {row}: position {one} holds no control token; align="delimiter" joins '
                "control tokens only"
            )
        if len(here) != len(there):
            raise ValueError(
                f"row {row}: the control token at position {one} stands {len(here)} times in the "
                f"patched run and {len(there)} times in the other, so it is ambiguous which is "
                "its like; name both by Pair(target, source)"
            )
        found.append(there[here.index(one)])
    return found


_COUNTED: dict[str, Callable[[Batch, Batch, int, list[int]], list[int]]] = {
    "same": _same,
    "last": _last,
    "delimiter": _delimiter,
}


def _controls(batch: Batch, row: int) -> dict[int, list[int]]:
    """Positions of the control tokens of a row, by token."""
    found: dict[int, list[int]] = {}
    for at in (batch.roles[row] == Role.SPECIAL).nonzero().flatten().tolist():
        found.setdefault(int(batch.inputs["input_ids"][row, at]), []).append(at)
    return found


def every_position(batch: Batch) -> Sequence[int]:
    """All positions of the prompts, which must be of one length.

    Raises:
        ValueError: for prompts of different lengths.
    """
    lengths = set(batch.prompt_mask.sum(dim=1).tolist())
    if len(lengths) > 1:
        raise ValueError(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens; 'each' needs prompts of "
            "one length. Name positions, or count them from the end: range(-8, 0)"
        )
    return range(lengths.pop())
