"""What one call of the raw model holds, for hooks on a model that somebody else runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from model_adapters.batch import Positions
from model_adapters.describe import roles_of
from model_adapters.errors import InputError
from model_adapters.families import Family


@dataclass(frozen=True, eq=False)
class Call(Positions):
    """The new positions of one forward call: all of the prompt, its next turn, or one token."""

    roles: Int[Tensor, "batch position"]
    """A `Role` for every new position. Rows are those of the call: beams are rows of their own."""
    past: int
    """Positions that the cache already held, padding included."""

    @property
    def phase(self) -> Literal["prefill", "decode"]:
        """ "decode" for one new position on top of earlier ones, else "prefill"."""
        return "decode" if self.past and self.roles.shape[1] == 1 else "prefill"


def read_call(
    inputs: Mapping[str, Any],
    family: Family,
    config: Any,
    *,
    control: frozenset[int],
    request: Mapping[str, Any] | None = None,
) -> Call:
    """Read the keyword arguments of a forward call.

    Args:
        inputs: of the call, token ids among them.
        family: which media the model takes.
        config: the model's configuration.
        control: ids of control tokens.
        request: what a call with embeddings was made of, token ids among it.

    Raises:
        InputError: for a call without token ids, or with a mask that is not [batch, position].
    """
    times = 1
    if inputs.get("input_ids") is None and request:
        times = _times(request["input_ids"], inputs.get("inputs_embeds"))
        inputs = {**inputs, **request, "attention_mask": _every(inputs, times)}
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise InputError(
            "the model was called without input_ids, so it cannot be told what stands at its "
            "positions; call it with input_ids instead of inputs_embeds"
        )
    if ids.ndim != 2:
        raise InputError(f"input_ids must be [batch, position]; their shape is {tuple(ids.shape)}")
    mask = inputs.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            given = f"of {mask.ndim} axes" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(
                f"attention_mask must be a tensor [batch, position] to tell padding, not {given}; "
                "masks made beforehand come with static caches: use the default cache"
            )
        if len(mask) != len(ids) or mask.shape[1] < ids.shape[1]:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}; it "
                "must cover all new positions of all rows"
            )
        mask = mask[:, -ids.shape[1] :]
    cache = inputs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    roles = roles_of({**inputs, "attention_mask": mask}, family, config, control=control)
    return Call(roles.repeat_interleave(times, dim=0), past)


def _times(ids: Tensor, embeddings: Tensor | None) -> int:
    """How many rows a search with beams makes of every row of a request."""
    shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else None
    if shape is None or shape[1] != ids.shape[1] or shape[0] % len(ids):
        raise InputError(
            f"the model's request has input_ids of shape {tuple(ids.shape)}, but its language "
            f"model was called with embeddings of shape {shape}: what they hold cannot be told"
        )
    return shape[0] // len(ids)


def _every(inputs: Mapping[str, Any], times: int) -> Any:
    """The mask of one beam of every row."""
    mask = inputs.get("attention_mask")
    return mask[::times] if isinstance(mask, Tensor) else mask
