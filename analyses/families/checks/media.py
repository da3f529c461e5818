"""The encoders' vectors, and media that went missing."""

import torch
from torch import Tensor

from analyses.families.checks.measure import CheckError, difference
from analyses.families.checks.plain import keep, logits
from analyses.families.prompts import Prompts, medium_of
from model_adapters import Adapter, InputError
from model_adapters.families.medium import tensor_of


def positions_hold_the_towers_vectors(adapter: Adapter, prompts: Prompts) -> float:
    """At the positions of each item stand the vectors that the encoder made for it, in order."""
    worst = 0.0
    for kind, batch in prompts.media():
        medium = medium_of(adapter, kind)
        outputs: list[Tensor] = []
        module = adapter.module.get_submodule(medium.features)
        handle = module.register_forward_hook(
            lambda _, args, output, kept=outputs: kept.append(tensor_of(output).clone())
        )
        entering: list[Tensor] = []
        hook = adapter.hook("embed", None, keep(entering))
        try:
            logits(adapter, batch)
        finally:
            handle.remove()
            hook.remove()
        vectors = medium.vectors(outputs, adapter.module, batch.inputs)
        spans = getattr(batch, f"{kind}s")
        placed = [
            entering[0][row, position]
            for row, of_row in enumerate(spans)
            for span in of_row
            for position in span.positions
        ]
        if len(placed) != len(vectors):
            raise CheckError(
                f"{len(placed)} positions of {kind} for {len(vectors)} vectors of the encoder"
            )
        worst = max(worst, difference(torch.stack(placed), vectors.to(placed[0].dtype)))
    return worst


def lost_media_are_refused(adapter: Adapter, prompts: Prompts) -> float:
    """An encoding whose media or placeholders went missing is refused, and nothing runs."""
    accepted = tried = 0
    for kind, batch in prompts.media():
        medium = medium_of(adapter, kind)
        lost = {n: v for n, v in batch.inputs.items() if n not in medium.joins()}
        short = dict(batch.inputs)
        place = int(medium.placeholders(short, adapter.module.config)[0].nonzero()[0])
        ids = short["input_ids"].clone()
        ids[0, place] = prompts.word
        short["input_ids"] = ids
        for broken in (lost, short):
            tried += 1
            try:
                adapter.describe(**broken)
                accepted += 1
            except InputError:
                pass
    return accepted / max(tried, 1)
