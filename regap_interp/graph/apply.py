"""What an edit does to the states at a site: tensors in, tensors out."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.values import Value, exact


def edited(
    edit: Edit,
    states: Float[Tensor, "row position *site"],
    chosen: Bool[Tensor, "row position"],
    strength: Float[Tensor, "row"],
    value: Value,
    to: Float[Tensor, "row"] | None,
    order: Int[Tensor, "row index"] | None = None,
) -> Float[Tensor, "row position *site"] | None:
    """`states` with one edit made, in their own dtype; None where it changes nothing.

    Args:
        edit: What to do.
        states: The site's value.
        chosen: The positions that the edit's rule names.
        strength: One for each row; rows at 0 keep their bits.
        value: What is added or put in, or the direction.
        to: The coordinate to set, for `set_coordinate`.
        order: The positions of explicit indices, in the order in which they were given.
    """
    strong = strength != 0
    if not strong.any():
        return None
    if not strong.all():
        chosen = chosen & strong[:, None].to(chosen.device)
    chosen = chosen.to(states.device)
    if not chosen.any():
        return None
    part = states if edit.head is None else states[:, :, edit.head]
    spread = (
        None
        if edit.op in ("remove", "set_coordinate")
        else _spread(edit, value, part, chosen, order)
    )
    new = _new(edit, part, strength, value, to, spread)
    if edit.keep_norm:
        length = exact(part).norm(dim=-1, keepdim=True)
        new = (exact(new) * (length / exact(new).norm(dim=-1, keepdim=True))).to(part.dtype)
    inside = chosen.reshape(*chosen.shape, *[1] * (part.ndim - 2))
    new = torch.where(inside, new, part)
    if edit.head is None:
        return new
    whole = states.clone()
    whole[:, :, edit.head] = new
    return whole


def _new(
    edit: Edit,
    part: Tensor,
    strength: Tensor,
    value: Value,
    to: Tensor | None,
    spread: Tensor | None,
) -> Tensor:
    amount = exact(strength.to(part.device))
    amount = amount.reshape(-1, *[1] * (part.ndim - 1))
    if spread is not None and edit.op == "add":
        # Half precision rounds once, not the shift and then the sum.
        wide = torch.promote_types(part.dtype, torch.float32)
        return (part.to(wide) + (amount * exact(spread)).to(wide)).to(part.dtype)
    if spread is not None:
        states, target = exact(part), exact(spread)
        mixed = states + amount * (target - states)
        return torch.where(amount == 1, target, mixed).to(part.dtype)
    vector = exact(value.tensor[0].to(part.device))
    unit = vector / vector.norm()
    states = exact(part)
    centred = states if edit.centre is None else states - exact(edit.centre.value.to(part.device))
    coordinate = (centred * unit).sum(dim=-1, keepdim=True)
    if to is not None:
        wanted = exact(to.to(part.device)).reshape(-1, *[1] * (part.ndim - 1))
        coordinate = coordinate - wanted
    return part - (amount * coordinate * unit).to(part.dtype)


def _spread(edit: Edit, value: Value, part: Tensor, chosen: Tensor, order: Tensor | None) -> Tensor:
    """The value at every position of the site."""
    given = value.tensor.to(part.device)
    if value.mask is not None:
        if bool((chosen & ~value.mask.to(chosen.device)).any()):
            raise GraphError(
                f"{edit.op} {edit.site} at={edit.at!r}: its value was read at other positions; "
                "read it with the same rule, or take its mean"
            )
        return given
    if given.ndim < part.ndim:
        return given.unsqueeze(1)
    counts = chosen.sum(dim=1)
    if not bool((counts[counts > 0] == given.shape[1]).all()):
        raise GraphError(
            f"{edit.op} {edit.site}: the value holds {given.shape[1]} positions a row, the rule "
            f"at={edit.at!r} names {sorted(set(counts.tolist()))}; take one vector a row, or "
            "prompts in which the rule names as many positions"
        )
    spread = torch.zeros_like(part, dtype=given.dtype)
    rows = given.expand(len(part), *given.shape[1:])
    if order is not None:
        each = torch.arange(len(part), device=part.device)[:, None]
        spread[each, order.to(part.device)] = rows
    else:
        spread[chosen] = rows[counts > 0].reshape(-1, *part.shape[2:])
    return spread
