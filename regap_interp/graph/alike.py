"""Which parts of a graph do the same thing at other layers, so that a drawing shows them once."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

_FEWEST = 3
"""Fewer than this are drawn one by one."""


def alike(
    kinds: Mapping[Item, Hashable], inputs: Mapping[Item, Sequence[Item]]
) -> list[tuple[Item, ...]]:
    """Items in groups: alike in kind, in what they are made from, and in what is made from them.

    Args:
        kinds: What every item is, apart from its layer; also the order of the groups.
        inputs: The items that each is made from, in order.

    Returns:
        Groups of three and more that are alike; every other item alone.
    """
    users: dict[Item, list[tuple[Item, int]]] = defaultdict(list)
    for item, sources in inputs.items():
        for port, source in enumerate(sources):
            users[source].append((item, port))
    colours = _numbered(kinds)
    while True:
        refined = _numbered(
            {
                item: (
                    colour,
                    tuple(colours[source] for source in inputs[item]),
                    frozenset((colours[user], port) for user, port in users[item]),
                )
                for item, colour in colours.items()
            }
        )
        if len(set(refined.values())) == len(set(colours.values())):
            break
        colours = refined
    groups: dict[int, list[Item]] = defaultdict(list)
    for item, colour in colours.items():
        groups[colour].append(item)
    found: list[tuple[Item, ...]] = []
    for group in groups.values():
        found += [tuple(group)] if len(group) >= _FEWEST else [(item,) for item in group]
    return found


def _numbered(keys: Mapping[Item, Hashable]) -> dict[Item, int]:
    numbers: dict[Hashable, int] = {}
    return {item: numbers.setdefault(key, len(numbers)) for item, key in keys.items()}
