"""Answers, batches and invokes."""

import torch
from torch import Tensor

import regap_interp as ri
from analyses.families.checks.measure import CheckError, difference
from analyses.families.checks.plain import NEW_TOKENS, direction, generated, logits, steered
from analyses.families.prompts import Prompts
from model_adapters import Adapter


def generation_equals_hooks(adapter: Adapter, prompts: Prompts) -> float:
    """Answers under an installed graph are those under a plain hook; the part that differs."""
    layer, worst = adapter.n_layers // 2, 0.0
    for batch in prompts.each():
        bare = generated(adapter, batch)
        for strength in (1, -1, 3, -3):
            vector = strength * direction(adapter)
            graph = ri.Graph(ri.add("resid_post", layer, vector, phase="both"))
            with graph.on(adapter) as patched:
                answer = patched.generate(
                    batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
                ).tokens
            with steered(adapter, layer, vector):
                plain = generated(adapter, batch)
            worst = max(worst, float((answer != plain).float().mean()))
            if not torch.equal(bare, plain):
                break
        else:
            raise CheckError("steering by hand changed no token, so equal answers tell nothing")
    return worst


def zero_strength_changes_nothing(adapter: Adapter, prompts: Prompts) -> float:
    """A graph of strength zero leaves the bare model's logits, bit for bit."""
    graph = ri.Graph(ri.add("resid_post", 1, direction(adapter), strength=0.0, phase="both"))
    different = 0.0
    for batch in prompts.each():
        bare = logits(adapter, batch)
        with graph.on(adapter):
            different = max(different, float((logits(adapter, batch) != bare).float().mean()))
    return different


def batched_equals_one_by_one(adapter: Adapter, prompts: Prompts) -> float:
    """Requests with different media, in one batch padded on the left, as they are alone."""
    worst = 0.0
    for encodings in prompts.together():
        batch = adapter.join(encodings)
        together = logits(adapter, batch)[torch.arange(len(batch)), batch.last.cpu()]
        for row, encoding in enumerate(encodings):
            alone = adapter.describe(**encoding)
            expected = logits(adapter, alone)[0, int(alone.last[0])]
            worst = max(worst, difference(together[row], expected))
    return worst


def invokes_equal_one_by_one(adapter: Adapter, prompts: Prompts) -> float:
    """Requests given to one trace by several `invoke`s read their own states."""
    layer = adapter.n_layers - 1
    worst = 0.0
    for encodings in prompts.together():
        batches = [adapter.describe(**encoding) for encoding in encodings]
        read: list[Tensor] = []
        with adapter.trace() as tracer:
            for batch in batches:
                with tracer.invoke(batch):
                    read.append(adapter.resid_post[layer].clone())
        for batch, states in zip(batches, read, strict=True):
            alone: list[Tensor] = []
            with adapter.trace(batch):
                alone.append(adapter.resid_post[layer].clone())
            worst = max(worst, difference(states, alone[0]))
    return worst
