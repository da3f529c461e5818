"""One strength for every request: what subtracting a direction does, by strength and layer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.geometry import estimate
from analyses.geometry.cells import Cells
from analyses.geometry.controls import Arm
from analyses.geometry.lens import RefusalTokens
from analyses.geometry.requests import Requests
from analyses.geometry.result import Source, recipe
from analyses.geometry.running import Right, Running
from analyses.geometry.sweeps import Sweep
from analyses.resuming import Partial, Progress, Work
from model_adapters import Adapter
from regap_interp.adaptive.outcomes import Refused
from regap_interp.directions import Direction
from regap_interp.graph import Graph, add

BARE = "bare"


def sweep(
    adapter: Adapter,
    requests: Requests,
    *,
    arms: Mapping[str, Arm],
    refusal: Mapping[int, Direction],
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    tokens: RefusalTokens | None = None,
    refused: Refused | None = None,
    right: Right | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Progress | bool = False,
    checkpoint: str | Path | None = None,
    resume: Partial | None = None,
) -> Sweep:
    """Subtract each arm at each of its layers and strengths, from every request alike.

    Vectors are subtracted from `resid_post` at all prompt positions. A constant leaves separability
    at the steered layer itself as it is; look at later layers. The bare logits of the benign
    requests are kept for the KL, one row of the vocabulary each.

    Args:
        adapter: The model.
        requests: Harmful and benign ones, not those that the directions were made of.
        arms: By name; see `drift_arm` and `control_arms`.
        refusal: Directions of `resid_post`, at the layers where separability is read.
        strengths: Multiples of the vectors; negative ones add them.
        tokens: For the log-odds of refusing and whether the first token refuses.
        refused: Judges whole answers, which are generated then.
        right: Tells right answers of benign requests (utility); answers are generated then.
        max_new_tokens: Longest answer.
        batch_size: Chats in a pass.
        resamples: Bootstrap draws.
        confidence: Of the intervals.
        seed: Of the draws.
        progress: Called after every pass with (requests run, in all), counted once for each arm,
            layer and strength; True draws a bar on standard error.
        checkpoint: A file that what is finished is written to as the passes go. If it is there,
            they go on from it.
        resume: `Interrupted.partial` of the same call. Judges are known by their names.

    Raises:
        ValueError: Arms or strengths that are empty or cannot be, or what was finished belongs to
            another call; before anything runs.
        GraphError: A direction of another model, site or layer.
        InputError: A request the model cannot take.
        Interrupted: On Ctrl-C; it carries what is finished.
    """
    if not arms or BARE in arms or not all(arms.values()):
        raise ValueError(f"arms are {sorted(arms)}; give vectors by layer, under names but 'bare'")
    if not strengths or not all(math.isfinite(one) and one != 0 for one in strengths):
        raise ValueError(
            f"strengths are {list(strengths)}; give finite ones other than 0, the bare model is "
            "always measured"
        )
    if not refusal:
        raise ValueError("refusal has no direction, so there is no layer to read separability at")
    estimate.check_draws(resamples, confidence)
    if tokens is not None:
        tokens.check(adapter)
    jobs: list[tuple[str, int | None, float, Graph]] = [(BARE, None, 0.0, Graph())]
    jobs += [
        (name, layer, strength, Graph(add("resid_post", layer, vector, strength=-strength)))
        for name, arm in arms.items()
        for layer, vector in arm.items()
        for strength in strengths
    ]
    runs = Running(
        adapter,
        requests,
        dict(sorted(refusal.items())),
        tokens,
        refused,
        right,
        max_new_tokens,
        batch_size,
    )
    for *_, graph in jobs:
        runs.check(graph)
    source = Source.of(adapter, site="resid_post")
    known = recipe(
        adapter,
        source,
        requests=requests.fingerprint(),
        arms=[[name, *where] for name, *where, _ in jobs],
        vectors=[[vector for _, vector in arm.items()] for arm in arms.values()],
        refusal=[[at, one.vector, one.centre] for at, one in runs.refusal.items()],
        tokens=None if tokens is None else [tokens.refusing, tokens.answering],
        answers=[_name(refused), _version(refused), _name(right), max_new_tokens],
    )
    work = Work(
        runs.nothing(len(jobs), known), resume=resume, checkpoint=checkpoint, progress=progress
    )
    with work.running():
        runs.run(work, [graph for *_, graph in jobs])
        make = Cells(
            requests,
            runs.reads,
            tuple(runs.refusal),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        ).make
        steered = sorted({layer for _, layer, *_ in jobs if layer is not None})
        cells = [
            make(name, layer, strength, steered if layer is None else [layer], values)
            for (name, layer, strength, _), values in zip(jobs, work.tensors["values"], strict=True)
        ]
    return Sweep(
        source=source,
        seed=seed,
        cells=tuple(cells),
        read_at=tuple(runs.refusal),
        n_harmful=int(requests.harmful.sum()),
        n_benign=int((~requests.harmful).sum()),
        modalities=tuple(dict.fromkeys(requests.modality)),
        judge=_name(refused),
        confidence=confidence,
        resamples=resamples,
    )


def _name(judge: Refused | Right | None) -> str:
    """Of a judge; empty where there is none."""
    return (
        "" if judge is None else str(getattr(judge, "name", getattr(judge, "__qualname__", judge)))
    )


def _version(judge: Refused | None) -> str:
    """Of a judge that has one."""
    return str(getattr(judge, "version", ""))


def reverse_test(
    adapter: Adapter,
    requests: Requests,
    *,
    arms: Mapping[str, Arm],
    refusal: Mapping[int, Direction],
    strengths: Sequence[float] = (0.5, 1.0, 1.5),
    **options: Any,
) -> Sweep:
    """Add drift (and controls) to text: if drift causes the collapse, refusal of text falls too.

    Args:
        adapter: The model.
        requests: The text ones among them are used.
        arms: As for `sweep`.
        refusal: As for `sweep`.
        strengths: How much is added, above 0; in the result they are below 0.
        options: As for `sweep`.

    Raises:
        ValueError: There is no text, or a strength is not above 0; and as for `sweep`.
    """
    text = requests.rows(modality="text")
    if not text or not all(one > 0 for one in strengths):
        raise ValueError(
            f"{len(text)} text requests, strengths {list(strengths)}; the reverse test adds "
            "amounts above 0 to text"
        )
    return sweep(
        adapter,
        requests.only(text),
        arms=arms,
        refusal=refusal,
        strengths=[-one for one in strengths],
        **options,
    )
