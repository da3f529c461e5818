"""The checks that every family passes, on a tiny model with random weights.

Each gives the largest difference it saw, relative to the largest value compared, or None where the
model has nothing to check. References are plain PyTorch hooks on the raw model, the raw model's own
`generate`, and gradients.
"""

from collections.abc import Callable, Mapping

from analyses.families.checks.heads import heads_are_those_of_the_attention
from analyses.families.checks.measure import CheckError as CheckError
from analyses.families.checks.measure import difference as difference
from analyses.families.checks.media import (
    lost_media_are_refused,
    positions_hold_the_towers_vectors,
)
from analyses.families.checks.places import frames_are_those_heard, grids_are_where_the_pixels_are
from analyses.families.checks.runs import (
    batched_equals_one_by_one,
    generation_equals_hooks,
    invokes_equal_one_by_one,
    zero_strength_changes_nothing,
)
from analyses.families.checks.sites import (
    lens_equals_logits,
    patching_equals_hooks,
    sites_equal_hooks,
    writes_equal_hooks,
)
from analyses.families.prompts import Prompts
from model_adapters import Adapter

Check = Callable[[Adapter, Prompts], float | None]

CHECKS: Mapping[str, Check] = {
    "sites equal plain hooks": sites_equal_hooks,
    "writes equal plain hooks": writes_equal_hooks,
    "heads are those of the attention": heads_are_those_of_the_attention,
    "patching equals plain hooks": patching_equals_hooks,
    "logit lens equals logits": lens_equals_logits,
    "steered generation equals hooked": generation_equals_hooks,
    "zero strength changes nothing": zero_strength_changes_nothing,
    "batched equals one by one": batched_equals_one_by_one,
    "invokes equal one by one": invokes_equal_one_by_one,
    "positions hold the encoder's vectors": positions_hold_the_towers_vectors,
    "spans' grids are where the pixels are": grids_are_where_the_pixels_are,
    "audio frames are those heard": frames_are_those_heard,
    "lost media are refused": lost_media_are_refused,
}


def applies(check: str, adapter: Adapter) -> bool:
    """Whether a check has a meaning for this model."""
    family = adapter.family
    if check == "logit lens equals logits":
        return not family.altup
    if check == "invokes equal one by one":
        return not (family.altup or family.flat_mlp)
    return True
