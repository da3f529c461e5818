"""The requests that geometry is measured on, with what is known of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat
from regap_interp.adaptive.item import Item
from regap_interp.artefact.provenance import data_fingerprint

PAIRS = ("harmful", "benign", "balanced", "all")


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in order. Make them by `of` (items with chats) or `encoded` (ready batches)."""

    entries: tuple[Chat | Batch, ...]
    """Chats, or batches of one or more rows."""
    ids: tuple[str, ...]
    """One for each request, different from each other."""
    harmful: Bool[Tensor, "item"]
    """Whether it should be refused."""
    modality: tuple[str, ...]
    """"text", "image", "audio", "video" or "omni"."""
    twin: tuple[str | None, ...]
    """Id of the text request of the same meaning, among these; None without."""
    cluster: tuple[str, ...]
    """Requests of one cluster are resampled together."""

    def __post_init__(self) -> None:
        """Refuse requests that do not fit together."""
        n = sum(len(one) if isinstance(one, Batch) else 1 for one in self.entries)
        if not n:
            raise ValueError("there are no requests")
        for name in ("ids", "harmful", "modality", "twin", "cluster"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {n} requests")
        place = {one: index for index, one in enumerate(self.ids)}
        if len(place) != n:
            twice = next(one for one in self.ids if self.ids.count(one) > 1)
            raise ValueError(f"two requests have the id {twice!r}; ids must be unique")
        for index, twin in enumerate(self.twin):
            if twin is None:
                continue
            other = place.get(twin)
            if (
                other is None
                or self.modality[other] != "text"
                or self.modality[index] == "text"
                or bool(self.harmful[other]) != bool(self.harmful[index])
            ):
                raise ValueError(
                    f"request {self.ids[index]!r} ({self.modality[index]}) has the twin {twin!r}; "
                    "expected the id of a text request among these that is as harmful"
                )

    @classmethod
    def of(cls, items: Sequence[Item], *, split: str | None = None) -> "Requests":
        """Items of a split (of all splits by default). A medium and its twin are one cluster; where
        only one of the two has one given, that is the other's too."""
        chosen = [item for item in items if split is None or item.split == split]
        if not chosen:
            raise ValueError(f"no items of the split {split!r} among {len(items)}")
        given = {item.id: item.cluster for item in chosen}
        for item in chosen:
            if item.twin_id and item.cluster and not given.get(item.twin_id):
                given[item.twin_id] = item.cluster
        return cls(
            entries=tuple(item.messages for item in chosen),
            ids=tuple(item.id for item in chosen),
            harmful=torch.tensor([item.harmful for item in chosen]),
            modality=tuple(item.modality for item in chosen),
            twin=tuple(item.twin_id for item in chosen),
            cluster=tuple(
                given[item.id] or given.get(item.twin_id or "") or item.twin_id or item.id
                for item in chosen
            ),
        )

    @classmethod
    def encoded(
        cls,
        batches: Sequence[Batch],
        *,
        harmful: Sequence[bool] | Bool[Tensor, "item"],
        twin: Sequence[int | None] | None = None,
        cluster: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
    ) -> "Requests":
        """Ready batches, for models without a processor; modalities are those of the batches.

        Args:
            batches: From `adapter.describe` or `adapter.join`; run as they are.
            harmful: Of every row of every batch, in order.
            twin: The row (over all batches) of the text twin of every row.
            cluster: Of every row; by default a medium and its twin are one.
            ids: Of every row; by default its number.
        """
        modality = tuple(kind for batch in batches for kind in batch.modalities)
        names = tuple(ids) if ids is not None else tuple(map(str, range(len(modality))))
        rows = tuple(twin) if twin is not None else (None,) * len(modality)
        if any(row is not None and not 0 <= row < len(names) for row in rows):
            raise ValueError(f"twin is {list(rows)}; rows are 0 to {len(names) - 1}")
        twins = tuple(None if row is None else names[row] for row in rows)
        together = tuple(other or own for other, own in zip(twins, names, strict=False))
        labels = torch.as_tensor(harmful, dtype=torch.bool)
        return cls(tuple(batches), names, labels, modality, twins, tuple(cluster or together))

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.ids)

    @property
    def media(self) -> tuple[str, ...]:
        """Modalities but text, in the order they come."""
        return tuple(dict.fromkeys(one for one in self.modality if one != "text"))

    def rows(self, *, modality: str | None = None, harmful: bool | None = None) -> list[int]:
        """Places of the requests that match all that is given: modality, harmful or not."""
        return [
            index
            for index, kind in enumerate(self.modality)
            if (modality is None or kind == modality)
            and (harmful is None or bool(self.harmful[index]) == harmful)
        ]

    def pairs(self, modality: str, kind: str = "all") -> tuple[list[int], list[int]]:
        """Places of the media of one modality that have twins, and of these.

        Args:
            modality: Of the media.
            kind: "harmful" or "benign" pairs only; "balanced" and "all" give both.

        Raises:
            ValueError: fewer than 2 pairs, or none of a kind.
        """
        if kind not in PAIRS:
            raise ValueError(f"pairs is {kind!r}; expected one of {', '.join(PAIRS)}")
        wanted = {"harmful": True, "benign": False}.get(kind)
        rows = [
            row
            for row in self.rows(modality=modality, harmful=wanted)
            if self.twin[row] is not None
        ]
        kinds = {bool(self.harmful[row]) for row in rows}
        if len(rows) < 2 or (kind == "balanced" and len(kinds) < 2):
            raise ValueError(
                f"{len(rows)} {modality} pair(s) for pairs={kind!r} among {len(self)} requests; "
                "drift needs at least 2, of each kind if balanced, and better a hundred"
            )
        place = {one: index for index, one in enumerate(self.ids)}
        return rows, [place[str(self.twin[row])] for row in rows]

    def only(self, rows: Sequence[int]) -> "Requests":
        """Some of them, in order; twins that are left out are forgotten.

        Raises:
            ValueError: a batch would have to be cut.
        """
        wanted, entries, start = set(rows), [], 0
        for entry in self.entries:
            stop = start + (len(entry) if isinstance(entry, Batch) else 1)
            inside = len(wanted & set(range(start, stop)))
            if inside not in (0, stop - start):
                raise ValueError(
                    f"{inside} of the {stop - start} rows of a batch are wanted; give ready "
                    "requests in batches that hold one modality each, or one request each"
                )
            if inside:
                entries.append(entry)
            start = stop
        kept = sorted(wanted)
        names = {self.ids[row] for row in kept}
        return Requests(
            entries=tuple(entries),
            ids=tuple(self.ids[row] for row in kept),
            harmful=self.harmful[kept],
            modality=tuple(self.modality[row] for row in kept),
            twin=tuple(self.twin[row] if self.twin[row] in names else None for row in kept),
            cluster=tuple(self.cluster[row] for row in kept),
        )

    def fingerprint(self) -> str:
        """sha256 in hex over contents, ids, labels and twins, in order. Files of media count by
        their bytes; objects that are no plain data by their type only."""
        about = [*zip(self.ids, self.harmful.tolist(), self.modality, self.twin, strict=True)]
        contents = [one.inputs if isinstance(one, Batch) else one for one in self.entries]
        return data_fingerprint({"about": about, "contents": _hashable(contents)})

    def batches(self, adapter: Adapter, batch_size: int) -> list[Batch]:
        """Everything encoded, `batch_size` chats each, in order; ready batches as they are.

        Raises:
            ValueError: a batch size below 1.
            InputError: a request the model cannot take.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        found: list[Batch] = []
        waiting: list[Chat] = []
        for entry in (*self.entries, None):
            if waiting and (
                entry is None or isinstance(entry, Batch) or len(waiting) == batch_size
            ):
                found.append(adapter.encode(waiting))
                waiting = []
            if isinstance(entry, Batch):
                found.append(entry)
            elif entry is not None:
                waiting.append(entry)
        return found


def _hashable(value: Any, media: bool = False) -> Any:
    """Nested data as `data_fingerprint` takes it; inside `media`, strings may name files."""
    if isinstance(value, Mapping):
        inside = media or value.get("type", "text") != "text"
        return {str(key): _hashable(one, inside and key != "type") for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_hashable(one, media) for one in value]
    if media and isinstance(value, str):
        return _file(value) or value
    if isinstance(value, np.generic):
        return value.item()
    plain = str | bytes | int | float | Path | Tensor | np.ndarray | Image.Image | None
    return value if isinstance(value, plain) else type(value).__qualname__


def _file(name: str) -> Path | None:
    """What a path or file URL names, if it is there."""
    try:
        path = Path(unquote(urlparse(name).path) if name.startswith("file://") else name)
        return path if path.is_file() else None
    except (OSError, ValueError):  # a data URL is too long for a name
        return None
