"""Which layer and position to take the refusal direction from: the selection of Arditi et al. 2024.

Every candidate is the difference of means of block inputs at one token of the chat template behind
the instruction (2406.11717, and its repository `refusal_direction`). It is judged by what it does:
removed from the model it should let harmful requests through (bypass) and change nothing else (KL);
added to harmless requests it should make the model refuse (induce).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat, normalise
from regap_interp import _candidates as passes
from regap_interp._candidates import refusal_score as refusal_score
from regap_interp.artefact.provenance import data_fingerprint
from regap_interp.capture import Progress
from regap_interp.graph.engine import is_steered
from regap_interp.selected import Candidate as Candidate
from regap_interp.selected import Selection as Selection

# Of the longest candidate: what rounding leaves where the classes do not differ at all.
_NO_DIFFERENCE = 1e-9
_Sets = dict[str, list[tuple[list[int], Batch]]]
_LEAST = {"harmful": 2, "harmless": 2, "harmful_val": 1, "harmless_val": 1}


def select_direction(
    adapter: Adapter,
    *,
    harmful: Sequence[Chat],
    harmless: Sequence[Chat],
    harmful_val: Sequence[Chat],
    harmless_val: Sequence[Chat],
    refusal_tokens: Sequence[int | str],
    positions: Sequence[int] | None = None,
    filter_items: bool = True,
    max_kl: float | None = 0.1,
    min_induce: float | None = 0.0,
    prune: float = 0.2,
    batch_size: int = 32,
    progress: Progress | bool = False,
) -> Selection:
    """Score the difference of means of every layer and template position, and choose one.

    Candidates are means of each layer's *input* (site resid_pre), float64. Removing means
    projecting the unit direction out of every layer's input, attention output and MLP output, at
    all positions; adding means the raw vector at its own layer, all positions. Discarded are
    scores that are not a number, layers from `int((1 - prune) * n_layers)` on, KL above `max_kl`,
    induce below `min_induce`, and directions of no length. Of the others the lowest bypass wins;
    of equals the earliest position, then the lowest layer.

    It takes one pass over the items for the baseline, one for the means, and for each candidate one
    over both validation sets and another over the harmless one.

    Args:
        adapter: The model.
        harmful: Text requests for the means, at least 2 after the filter.
        harmless: As many kinds of harmless requests, at least 2 after the filter.
        harmful_val: Requests for the scores; none of those above.
        harmless_val: Likewise.
        refusal_tokens: Ids, or strings of one token, that open a refusal, such as "I" and "As".
        positions: Candidates' positions from the end, such as `(-2, -1)`; by default all behind
            the instruction.
        filter_items: Leave out harmful items the untouched model does not refuse (score at most 0)
            and harmless ones it does (score at least 0), as the paper does.
        max_kl: In nats; None for no limit.
        min_induce: Refusal score; None for no limit.
        prune: Share of layers, from the last.
        batch_size: Prompts in one pass.
        progress: Called with (candidates done, candidates in all); True draws a bar on standard
            error.

    Raises:
        ValueError: A graph is installed on the model, too few items, an item in two sets, unknown
            tokens, positions that are not of the template, or limits that make no sense; before
            the candidates are scored.
        InputError: A request the model cannot take.
    """
    if is_steered(adapter):
        raise ValueError(
            "a graph is installed on the model, so that nothing would be measured of the untouched "
            "one; leave its with-block first"
        )
    given: dict[str, Sequence[Chat]] = {
        "harmful": list(harmful),
        "harmless": list(harmless),
        "harmful_val": list(harmful_val),
        "harmless_val": list(harmless_val),
    }
    _check_items(adapter, given)
    limits = _Limits(max_kl, min_induce, prune)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    tokens = passes.token_ids(adapter, refusal_tokens)
    encoded = {name: [adapter.encode([one]) for one in chats] for name, chats in given.items()}
    every = [batch for batches in encoded.values() for batch in batches]
    if positions is None:
        chats = [chat for chats in given.values() for chat in chats]
        positions = passes.template_positions(adapter, chats, every)
    positions = sorted(positions)
    passes.check_positions(positions, every)

    scores = {
        name: refusal_score(_logits(adapter, batches, batch_size), tokens)
        for name, batches in encoded.items()
    }
    kept = {name: _expected(name, found, filter_items) for name, found in scores.items()}
    _check_kept(kept, given)
    sets = {
        name: passes.in_batches(adapter, [encoded[name][index] for index in kept[name]], batch_size)
        for name in given
    }
    towards, origin = (
        passes.mean_inputs(adapter, sets[name], positions) for name in ("harmful", "harmless")
    )
    baseline = {name: float(scores[name][kept[name]].mean()) for name in given}
    candidates = _judged(
        adapter, sets, positions, towards - origin, tokens, baseline, limits, progress
    )
    allowed = [one for one in candidates if not one.discarded]
    return Selection(
        candidates=tuple(candidates),
        chosen=min(allowed, key=lambda one: one.bypass, default=None),
        baseline_harmful=baseline["harmful_val"],
        baseline_harmless=baseline["harmless_val"],
        counts={name: len(indices) for name, indices in kept.items()},
        dropped={name: len(given[name]) - len(indices) for name, indices in kept.items()},
        refusal_tokens=tokens,
        max_kl=max_kl,
        min_induce=min_induce,
        prune=prune,
        model=adapter.fingerprint,
        data=data_fingerprint(
            {
                f"{name}-{index}": given[name][index]
                for name in ("harmful", "harmless")
                for index in kept[name]
            }
        ),
        towards=towards,
        origin=origin,
    )


@dataclass(frozen=True)
class _Limits:
    max_kl: float | None
    min_induce: float | None
    prune: float

    def __post_init__(self) -> None:
        given = [one for one in (self.max_kl, self.min_induce) if one is not None]
        if not (0 <= self.prune < 1 and all(map(math.isfinite, given))):
            raise ValueError(
                f"max_kl is {self.max_kl}, min_induce {self.min_induce}, prune {self.prune}; a "
                "limit is a number or None, prune a share in [0, 1)"
            )

    def reasons(self, scores: tuple[float, float, float], layer: int, of: int) -> list[str]:
        """Why a candidate with these scores, of one of so many layers, cannot be chosen."""
        _, induce, kl = scores
        checks = {
            "not a number": any(map(math.isnan, scores)),
            "late layer": layer >= int(of * (1.0 - self.prune)),
            "KL too high": self.max_kl is not None and kl > self.max_kl,
            "induces too little": self.min_induce is not None and induce < self.min_induce,
        }
        return [reason for reason, holds in checks.items() if holds]


def _judged(
    adapter: Adapter,
    sets: _Sets,
    positions: Sequence[int],
    differences: Float[Tensor, "position layer d_model"],
    tokens: Sequence[int],
    baseline: dict[str, float],
    limits: _Limits,
    progress: Progress | bool,
) -> list[Candidate]:
    bare = passes.last_logits(adapter, sets["harmless_val"])
    norms = differences.norm(dim=-1)
    empty = norms <= _NO_DIFFERENCE * norms.max()
    candidates: list[Candidate] = []
    with tqdm(total=norms.numel(), unit=" candidates", disable=progress is not True) as bar:
        for index, position in enumerate(positions):
            for layer in range(adapter.n_layers):
                if empty[index, layer]:
                    # Nothing to remove or add.
                    scores = baseline["harmful_val"], baseline["harmless_val"], 0.0
                else:
                    vector = differences[index, layer]
                    scores = _scores(adapter, sets, vector, layer, tokens, bare)
                reasons = ["classes do not differ"] if empty[index, layer] else []
                reasons += limits.reasons(scores, layer, adapter.n_layers)
                norm = float(norms[index, layer])
                candidates.append(Candidate(position, layer, norm, *scores, tuple(reasons)))
                bar.update()
                if not isinstance(progress, bool):
                    progress(len(candidates), norms.numel())
    return candidates


def _scores(
    adapter: Adapter,
    sets: _Sets,
    vector: Float[Tensor, "d_model"],
    layer: int,
    tokens: Sequence[int],
    bare: Float[Tensor, "item d_vocab"],
) -> tuple[float, float, float]:
    """Bypass, induce and KL of one candidate."""
    removed = passes.ablation(vector, adapter.n_layers)
    bypass = refusal_score(passes.last_logits(adapter, sets["harmful_val"], removed), tokens)
    kl = passes.kl_divergence(bare, passes.last_logits(adapter, sets["harmless_val"], removed))
    added = passes.addition(vector, layer)
    induce = refusal_score(passes.last_logits(adapter, sets["harmless_val"], added), tokens)
    return float(bypass.mean()), float(induce.mean()), float(kl.mean())


def _logits(
    adapter: Adapter, encoded: Sequence[Batch], batch_size: int
) -> Float[Tensor, "item d_vocab"]:
    return passes.last_logits(adapter, passes.in_batches(adapter, encoded, batch_size))


def _expected(name: str, scores: Float[Tensor, "item"], filter_items: bool) -> list[int]:
    """Items with which the untouched model does what is expected of it."""
    if not filter_items:
        return list(range(len(scores)))
    right = scores > 0 if name.startswith("harmful") else scores < 0
    return [int(index) for index in torch.nonzero(right).flatten()]


def _check_items(adapter: Adapter, given: dict[str, Sequence[Chat]]) -> None:
    short = [name for name, chats in given.items() if len(chats) < _LEAST[name]]
    if short:
        raise ValueError(
            f"{', '.join(f'{name} has {len(given[name])} items' for name in short)}; means need "
            "at least 2, scores at least 1"
        )
    seen: dict[str, str] = {}
    for name, chats in given.items():
        for index, chat in enumerate(chats):
            # A chat has several spellings: strings or parts, say.
            key = data_fingerprint({"chat": normalise([chat], adapter.media)[0]})
            if seen.setdefault(key, name) != name:
                raise ValueError(
                    f"item {index} of {name} is in {seen[key]} too; the sets must not share items"
                )


def _check_kept(kept: dict[str, list[int]], given: dict[str, Sequence[Chat]]) -> None:
    short = [name for name, indices in kept.items() if len(indices) < _LEAST[name]]
    if short:
        listed = ", ".join(f"{len(kept[name])} of {len(given[name])} {name}" for name in short)
        raise ValueError(
            f"the untouched model does what is expected with only {listed} items (refuses harmful, "
            "answers harmless); check the refusal tokens, or give filter_items=False"
        )
