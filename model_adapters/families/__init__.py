"""The families that are known, each as its difference from the defaults.

One module a house; an entry that fits is found by the model's own `config.model_type`.
"""

from typing import Any

from model_adapters.errors import LoadError
from model_adapters.families import (
    anyres,
    audio,
    gemma,
    glm,
    minicpmo,
    minicpmv,
    packed,
    pictures,
    qwen,
    text,
)
from model_adapters.families.family import Family as Family
from model_adapters.families.family import Part as Part
from model_adapters.families.family import TokenTypes as TokenTypes
from model_adapters.families.forms_audio import Frames as Frames
from model_adapters.families.forms_grid import Grid as Grid
from model_adapters.families.forms_pictures import Pictures as Pictures
from model_adapters.families.medium import Item as Item
from model_adapters.families.medium import Join as Join
from model_adapters.families.medium import Medium as Medium
from model_adapters.families.medium import attribute
from model_adapters.families.text import TEXT_ONLY as TEXT_ONLY

_HOUSES = (
    qwen,
    glm,
    minicpmv,
    minicpmo,
    packed,
    anyres,
    pictures,
    audio,
    gemma,
    text,
)
FAMILIES: tuple[Family, ...] = tuple(family for house in _HOUSES for family in house.FAMILIES)
"""Where several fit, the first one is meant."""


def family_of(config: Any) -> Family:
    """The family of a model by its configuration.

    Raises:
        LoadError: for a model that takes media and has no entry here.
    """
    for family in FAMILIES:
        fits = all(attribute(config, path) == value for path, value in family.where.items())
        if config.model_type in family.model_types and fits:
            return family
    towers = [name for name in ("vision_config", "audio_config") if hasattr(config, name)]
    if towers:
        known = sorted(name for one in FAMILIES if one.media for name in one.model_types)
        raise LoadError(
            f"no family for model_type {config.model_type!r} (its config has {' and '.join(towers)}"
            f"); known here: {', '.join(known)}, and text-only decoders. Say where its parts are: "
            "load(model, family=Family(...)), as docs/bring_your_own_model.md shows."
        )
    return TEXT_ONLY


def part_of(model_type: str) -> Part | None:
    """The part to load of a checkpoint that holds more than a language model, or None."""
    for family in FAMILIES:
        for whole, part in family.parts:
            if whole == model_type:
                return part
    return None
