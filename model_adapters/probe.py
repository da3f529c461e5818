"""Short random prompts with media in them, to try a model on."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model_adapters.batch import moved
from model_adapters.families import Family
from model_adapters.families.medium import Kind, token_id
from model_adapters.precision import in_tower_precision
from model_adapters.weights import device_of


def probe(module: nn.Module, family: Family) -> dict[str, Any]:
    """Inputs of one short prompt with one small item of every medium that others can stand by."""
    kinds = tuple(medium.kind for medium in family.media if medium.kind not in family.alone)
    return example(module, family, kinds)


def example(
    module: nn.Module, family: Family, kinds: Sequence[Kind], *, size: int = 0, seed: int = 0
) -> dict[str, Any]:
    """Inputs of one short random prompt with one item of each of some media.

    Args:
        module: the model.
        family: its entry.
        kinds: media in order of the prompt; none for a text.
        size: of the items, 0 or 1; it also changes the words.
        seed: of the values.
    """
    model: Any = module
    config = model.config
    device = device_of(module)
    generator = torch.Generator().manual_seed(seed)
    words = plain_tokens(config, family)
    ids = [words[1 + (seed + i) % 6] for i in range(3 + 2 * size)]
    inputs: dict[str, Any] = {}
    for kind in kinds:
        medium = family.medium(kind)
        if medium is None:
            raise ValueError(f"{family.name} takes no {kind}")
        item = medium.example(config, generator, size)
        inputs |= item
        before, after = medium.around(config)
        inputs |= medium.placed(item, config, len(ids) + len(before))
        placed = [t for one in medium.items(item, config) for t in medium.laid_out(one, config)]
        ids = [*ids, *before, *placed, *after, words[4], words[5]]
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if family.token_types is not None and (kinds or family.token_types.always):
        for name in family.token_types.names:
            types = torch.zeros_like(inputs["input_ids"])
            for medium in (medium for medium in family.media if medium.kind in kinds):
                places = medium.placeholders(inputs, config)
                if name == family.token_types.wider:
                    around = [token for side in medium.around(config) for token in side]
                    places |= torch.isin(inputs["input_ids"], torch.tensor(around))
                types[places] = family.token_types.ids.get(medium.kind, 0)
            inputs[name] = types
    on_device: dict[str, Any] = moved(in_tower_precision(inputs, module, family), device)
    return on_device


def plain_tokens(config: Any, family: Family) -> list[int]:
    """At least eight token ids that stand for no medium and are no control tokens."""
    taken = {medium.placeholder(config) for medium in family.media}
    taken |= {token for m in family.media for side in m.around(config) for token in side}
    taken |= {token_id(config, name) for name in family.control_tokens}
    taken |= {
        getattr(config.get_text_config(), f"{name}_token_id", None) for name in ("bos", "pad")
    }
    return [token for token in range(len(taken) + 8) if token not in taken]
