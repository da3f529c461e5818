"""What one call of the raw model holds, for hooks on a model that somebody else runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from model_adapters.batch import Positions
from model_adapters.describe import roles_of
from model_adapters.errors import InputError
from model_adapters.family import Family


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
    inputs: Mapping[str, Any], family: Family, config: Any, *, control: frozenset[int]
) -> Call:
    """Read the keyword arguments of a forward call.

    Args:
        inputs: of the call, token ids among them.
        family: which media the model takes.
        config: the model's configuration.
        control: ids of control tokens.

    Raises:
        InputError: for a call without token ids, or with a mask that is not [batch, position].
    """
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
    return Call(roles_of(ids, mask, family, config, control=control), past)
