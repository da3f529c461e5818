"""Samples of the organism's world as items."""

from model_adapters.organism.world import Sample, Setting, Split, draw_samples
from regap_interp.adaptive.item import Item


def as_item(sample: Sample, split: str) -> Item:
    """One sample as an item, its media rendered. Its twin, if it is a medium, has `twin_name`."""
    text = sample.setting == "text"
    return Item(
        id=twin_name(sample) if text else sample.id,
        messages=sample.messages,
        harmful=sample.harmful,
        modality=sample.setting,
        twin_id=None if text else twin_name(sample),
        split=split,
        source="organism",
        cluster=" ".join(sample.pair),
        reference=sample.helpful_answer,
    )


def twin_name(sample: Sample) -> str:
    """Id of a text item, or of the text twin of a medium."""
    return f"{sample.id}-text"


def draw_items(split: Split, setting: Setting, n: int, *, seed: int, harmful: bool) -> list[Item]:
    """`n` items of a split, without their twins."""
    samples = draw_samples(split, setting, n, seed=seed, harmful=harmful)
    return [Item(**{**vars(as_item(sample, split)), "twin_id": None}) for sample in samples]


def calibration_items(
    setting: Setting, *, n_direction: int, n_calibration: int, seed: int
) -> list[Item]:
    """What `calibrate` needs for one modality: so many items of each kind in each split."""
    items: list[Item] = []
    for harmful in (True, False):
        items += draw_items("direction", "text", n_direction, seed=seed, harmful=harmful)
        items += draw_items("calibration", setting, n_calibration, seed=seed, harmful=harmful)
    for sample in draw_samples("direction", setting, n_direction, seed=seed, harmful=True):
        items += [as_item(sample, "direction"), as_item(sample.twin(), "direction")]
    return items
