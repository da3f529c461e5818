"""The one item type: a request with what is known of it, for every loader and every defence."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model_adapters.encode import Chat
from regap_interp.artefact.provenance import data_fingerprint
from regap_interp.graph.nodes import MODALITIES

_KIND_OF_PART = {
    "image": "image",
    "image_url": "image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "video",
}


@dataclass(frozen=True, eq=False)
class Item:
    """One request. What is not known stays None; loaders fill in what their data set says."""

    id: str
    """Unique among the items it is used with."""
    messages: Chat
    """The chat as `Adapter.encode` takes it, the user's turn last."""
    harmful: bool
    """Whether it should be refused."""
    modality: str
    """"text", "image", "audio", "video", or "omni" for several kinds of media."""
    twin_id: str | None = None
    """Id of the text item with the same meaning, for media."""
    split: str | None = None
    """"direction", "calibration", "report", or any other name."""
    category: str | None = None
    """Kind of harm or topic, as the data set names it."""
    source: str | None = None
    """Data set it comes from."""
    cluster: str | None = None
    """Items that succeed or fail together (the same question rendered twice) share one; intervals
    resample clusters, and a cluster lies in one split."""
    reference: str | None = None
    """The right answer, word for word, where there is one."""

    def __post_init__(self) -> None:
        """Refuse an item whose modality is not that of its messages."""
        if not self.id:
            raise ValueError("an item's id is empty; give each item a name of its own")
        if self.modality not in MODALITIES:
            raise ValueError(
                f"item {self.id!r}: modality is {self.modality!r}; expected one of "
                f"{', '.join(MODALITIES)}"
            )
        found = modality_of(self.messages)
        if found != self.modality:
            raise ValueError(
                f"item {self.id!r}: modality is {self.modality!r}, its messages are {found!r}; "
                "several kinds of media are 'omni'"
            )
        if self.modality == "text" and self.twin_id is not None:
            raise ValueError(f"item {self.id!r} is text and has a twin; only media have text twins")


def modality_of(messages: Chat) -> str:
    """The modality of a chat, from its content parts."""
    parts = [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]
    kinds = {_KIND_OF_PART[part["type"]] for part in parts if part.get("type") in _KIND_OF_PART}
    if not kinds:
        return "text"
    return kinds.pop() if len(kinds) == 1 else "omni"


def check_items(items: Sequence[Item]) -> None:
    """Refuse items that would leak or mislead.

    Raises:
        ValueError: An id stands for two items, or for items of two splits; a twin does not exist,
            is not text, differs in harm, or lies in another split; a cluster lies in two splits.
    """
    if not items:
        raise ValueError("there are no items")
    known: dict[str, Item] = {}
    for item in items:
        other = known.setdefault(item.id, item)
        if other is not item:
            where = (
                f"in the splits {other.split!r} and {item.split!r}"
                if other.split != item.split
                else "twice"
            )
            raise ValueError(f"item {item.id!r} is there {where}; ids must be unique")
    split_of: dict[str, str | None] = {}
    for item in items:
        if item.twin_id is not None:
            _check_twin(item, known.get(item.twin_id))
        if item.cluster is not None and split_of.setdefault(item.cluster, item.split) != item.split:
            raise ValueError(
                f"cluster {item.cluster!r} lies in the splits {split_of[item.cluster]!r} and "
                f"{item.split!r}: what is chosen on one would be measured on the same questions; "
                "split by cluster"
            )


def _check_twin(item: Item, twin: Item | None) -> None:
    if twin is None:
        raise ValueError(
            f"item {item.id!r} names the twin {item.twin_id!r}, which is not among the items"
        )
    if twin.modality != "text" or twin.harmful != item.harmful:
        raise ValueError(
            f"item {item.id!r} and its twin {twin.id!r} do not match: a twin is text and says the "
            f"same (twin: {twin.modality}, harmful={twin.harmful}; item: harmful={item.harmful})"
        )
    if twin.split != item.split:
        raise ValueError(
            f"item {item.id!r} is in the split {item.split!r}, its twin {twin.id!r} in "
            f"{twin.split!r}; a pair lies in one split"
        )


def pick(
    items: Iterable[Item],
    *,
    split: str | None = None,
    modality: str | None = None,
    harmful: bool | None = None,
) -> list[Item]:
    """The items that match all that is given, in order."""
    return [
        item
        for item in items
        if (split is None or item.split == split)
        and (modality is None or item.modality == modality)
        and (harmful is None or item.harmful == harmful)
    ]


def items_fingerprint(items: Iterable[Item]) -> str:
    """SHA-256 over ids, labels and contents, media included; the order does not matter."""
    return data_fingerprint(
        (one.id, [one.harmful, one.modality, one.twin_id, one.split, list(one.messages)])
        for one in items
    )
