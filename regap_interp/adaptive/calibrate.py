"""Calibration: from labelled items to a frozen bundle for one modality."""

import sys
from collections.abc import Sequence

import torch
from tqdm import tqdm

from model_adapters import Adapter
from regap_interp.adaptive.bundle import Bundle, Calibration
from regap_interp.adaptive.geometry import ModalityGeometry, Pairs, measure_geometry
from regap_interp.adaptive.item import Item, check_items, items_fingerprint, pick
from regap_interp.adaptive.outcomes import Refused, judge
from regap_interp.adaptive.roc import Budget, roc
from regap_interp.adaptive.runs import prepare
from regap_interp.adaptive.search import Both, Right
from regap_interp.adaptive.signals import SIGNALS
from regap_interp.adaptive.work import LEAST, Given, Work, positives
from regap_interp.artefact.directions import Directions
from regap_interp.artefact.manifest import TOWARDS_HARMFUL, TOWARDS_MEDIA, Manifest, Recipe


def calibrate(
    adapter: Adapter,
    items: Sequence[Item],
    *,
    modality: str,
    refused: Refused,
    right: Right | None = None,
    geometry: ModalityGeometry | Directions | None = None,
    given: Given | None = None,
    budget: Budget = 0.05,
    utility_limit: float | None = None,
    target: float = 0.95,
    pairs: Pairs = "harmful",
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Bundle:
    """Choose everything ReGap needs for one modality, on the calibration split, and freeze it.

    1. Directions at every layer from the split "direction" (text of both kinds, media, twins).
    2. Layer: 20 to 80 % of the depth, largest gain of CRS later on at strength 1.
    3. Weak strength: the largest within the utility limit when every benign row gets it. Where all
       of them break the limit, or with `given.fallback="none"`, untriggered rows stay uncorrected
       and it is chosen, with signal and diagnostic layer, by AUROC.
    4. Signal and diagnostic layer: largest AUROC of harmful items that the bare model answers
       (of all harmful items if it answers under 20) against benign ones.
    5. Threshold: by the budget. 6. Strong: the smallest strength that reaches the
       target without degenerate answers; where none does, the best.

    Args:
        adapter: The model.
        items: Items of the splits "direction" and "calibration"; others are left out.
        modality: "image", "audio", "video" or "omni".
        refused: Tells whether an answer is a refusal.
        right: Tells whether an answer is right. Unless given, answers must equal the items'
            references; where a benign item has none, utility is the KL of the first token.
        geometry: Directions measured before, or a file of them, instead of the direction split.
        given: Choices made beforehand.
        budget: Fewer than this share of benign calibration items are triggered, or "youden".
        utility_limit: Benign right answers that the weak correction may cost (0.01 unless given),
            or its KL (0.02 unless given).
        target: Share of harmful calibration items that ReGap is to refuse.
        pairs: Pairs the drift is measured on.
        max_new_tokens: Longest answer.
        batch_size: Requests in one pass.
        seed: Of the draw of items that the layer is searched on.
        progress: Show a progress bar on stderr.

    Raises:
        ValueError: Items that leak or are too few, or choices that contradict each other.
        MismatchError: Directions of another model, chat template or site.
    """
    given = given or Given()
    given.check(adapter.n_layers)
    check_items(items)
    if isinstance(geometry, Directions):
        geometry.check(adapter, site="resid_post")
        geometry = ModalityGeometry.of(geometry, modality)
    used = [item for item in items if item.split in ("direction", "calibration")]
    kinds = _calibration_items(used, modality)
    if right is None and all(item.reference is not None for item in kinds[1]):
        right = _equals_reference
    with tqdm(unit=" requests", disable=not progress, file=sys.stderr, desc=modality) as bar:
        if geometry is None:
            geometry = measure_geometry(
                adapter, used, modality, pairs=pairs, batch_size=batch_size, tick=bar.update
            )
        generator = torch.Generator().manual_seed(seed)
        both = Both(
            *(
                prepare(
                    adapter,
                    [kind[i] for i in torch.randperm(len(kind), generator=generator)],
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                    tick=bar.update,
                )
                for kind in kinds
            )
        )
        work = Work(both, geometry, adapter.n_layers, given, refused, right)
        layer = work.choose_layer(batch_size)
        bare = judge(both.harmful.answers(), refused)
        probe = work.choose_probe(layer, positives(bare), utility_limit)
        threshold = work.choose_threshold(probe, budget)
        strong = work.choose_strong(layer, probe, threshold, bare, target)
    data = items_fingerprint(used)
    return Bundle(
        modality=modality,
        layer=layer,
        diagnostic=probe.diagnostic,
        weak=probe.weak,
        strong=strong,
        threshold=threshold,
        signal=probe.signal,
        fallback=probe.fallback,
        drift=geometry.drift[layer],
        refusal=geometry.refusal[layer],
        diagnostic_refusal=geometry.refusal[probe.diagnostic],
        manifest=Manifest.of(
            adapter,
            {
                "refusal": Recipe(TOWARDS_HARMFUL, data=data),
                f"drift/{modality}": Recipe(
                    TOWARDS_MEDIA, "mean of paired differences", {"pairs": pairs}, data=data
                ),
            },
        ),
        calibration=Calibration(
            reasons=work.reasons,
            roc={kind: roc(*probe.values(kind)) for kind in SIGNALS},
            sweeps=work.sweeps,
            n={
                "harmful": len(both.harmful),
                "harmful answered": int((~bare.refused).sum()),
                "benign": len(both.benign),
                "refusal harmful": geometry.refusal[layer].n_towards,
                "refusal harmless": geometry.refusal[layer].n_from,
                "drift pairs": geometry.drift[layer].n_towards,
            },
            refused=_name_of(refused),
            seed=seed,
            data=data,
        ),
    )


def _calibration_items(items: Sequence[Item], modality: str) -> tuple[list[Item], list[Item]]:
    harmful, benign = (
        pick(items, split="calibration", modality=modality, harmful=kind) for kind in (True, False)
    )
    if min(len(harmful), len(benign)) < LEAST:
        raise ValueError(
            f"{len(harmful)} harmful and {len(benign)} benign {modality} items in the split "
            f"'calibration'; at least {LEAST} of each are needed, and hundreds for a small budget"
        )
    return harmful, benign


def _equals_reference(item: Item, answer: str) -> bool:
    return answer.strip() == (item.reference or "").strip()


def _name_of(refused: Refused) -> str:
    name = getattr(refused, "name", None)
    if name is not None:
        return f"{name} {getattr(refused, 'version', '')}".strip()
    return f"{getattr(refused, '__module__', '')}.{getattr(refused, '__qualname__', 'callable')}"
