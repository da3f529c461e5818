"""One strength for every request: what subtracting a direction does, by strength and layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from analyses.geometry import estimate
from analyses.geometry.controls import Arm
from analyses.geometry.lens import RefusalTokens
from analyses.geometry.requests import Requests
from analyses.geometry.result import Source
from analyses.geometry.running import Right, Running
from analyses.geometry.sweeps import Sweep
from model_adapters import Adapter
from regap_interp.adaptive.outcomes import Refused
from regap_interp.directions import Direction
from regap_interp.graph import Graph, add

BARE = "bare"
Progress = Callable[[int, int], None]
"""Called with (passes done, passes in all)."""


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
        progress: Called after every pass with (done, in all); True draws a bar on standard error.

    Raises:
        ValueError: Arms or strengths that are empty or cannot be, before anything runs.
        GraphError: A direction of another model, site or layer.
        InputError: A request the model cannot take.
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
    work = Running(
        adapter,
        requests,
        dict(sorted(refusal.items())),
        tokens,
        refused,
        right,
        max_new_tokens,
        resamples,
        confidence,
        seed,
        batch_size,
    )
    for *_, graph in jobs:
        work.check(graph)
    total = len(jobs) * len(work.batches)
    cells = []
    with tqdm(total=total, unit=" passes", disable=progress is not True) as bar:

        def tick() -> None:
            bar.update()
            if not isinstance(progress, bool):
                progress(int(work.done), total)

        for name, layer, strength, graph in jobs:
            cells.append(work.cell(name, layer, strength, graph, tick))
    return Sweep(
        source=Source.of(adapter, site="resid_post"),
        seed=seed,
        cells=tuple(cells),
        read_at=tuple(work.refusal),
        n_harmful=int(requests.harmful.sum()),
        n_benign=int((~requests.harmful).sum()),
        modalities=tuple(dict.fromkeys(requests.modality)),
        judge="" if refused is None else str(getattr(refused, "name", refused)),
        confidence=confidence,
        resamples=resamples,
    )


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
