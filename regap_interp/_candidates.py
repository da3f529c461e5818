"""The passes behind `selection`: mean differences, ablation, addition, and their scores."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.encode import Chat
from model_adapters.tracer import lock_of
from model_adapters.validate import forward_names
from regap_interp._bucketed import join
from regap_interp._interrupt import whole

ABLATED = ("resid_pre", "attn_out", "mlp_out")
Edit = Callable[[Float[Tensor, "batch position d_model"]], Float[Tensor, "batch position d_model"]]
Edits = Mapping[tuple[str, int], Edit]

_ODDS_FLOOR = 1e-8
_KL_FLOOR = 1e-6


def refusal_score(
    logits: Float[Tensor, "item d_vocab"], tokens: Sequence[int]
) -> Float[Tensor, "item"]:
    """`log(P + 1e-8) - log(1 - P + 1e-8)`, P the chance of the next token being one of `tokens`.

    From logits of the last prompt token, in nats, float64; 0 where refusing is as likely as not,
    at most about 18.4 either way. This is the score of Arditi et al. 2024; `refusal_log_odds` is
    the same without the floor.
    """
    chances = logits.double().softmax(dim=-1)[:, list(tokens)].sum(dim=-1)
    # The sum may exceed 1 by rounding.
    others = (1 - chances).clamp(min=0)
    return torch.log(chances + _ODDS_FLOOR) - torch.log(others + _ODDS_FLOOR)


def kl_divergence(
    base: Float[Tensor, "item d_vocab"], edited: Float[Tensor, "item d_vocab"]
) -> Float[Tensor, "item"]:
    """KL(base || edited) of the next token in nats, float64, 1e-6 added to chances inside logs."""
    before, after = (logits.double().softmax(dim=-1) for logits in (base, edited))
    ratio = torch.log(before + _KL_FLOOR) - torch.log(after + _KL_FLOOR)
    return (before * ratio).sum(dim=-1)


def ablation(vector: Float[Tensor, "d_model"], n_layers: int) -> Edits:
    """Project `vector` out of every layer's input, attention output and MLP output."""
    unit = vector / vector.norm()

    def project(value: Tensor) -> Tensor:
        along = unit.to(value)
        return value - (value @ along).unsqueeze(-1) * along

    return {(site, layer): project for site in ABLATED for layer in range(n_layers)}


def addition(vector: Float[Tensor, "d_model"], layer: int) -> Edits:
    """Add `vector` to the input of one layer."""
    return {("resid_pre", layer): lambda value: value + vector.to(value)}


def in_batches(
    adapter: Adapter, encoded: Sequence[Batch], batch_size: int
) -> list[tuple[list[int], Batch]]:
    """Prompts of similar length together, padded on the left, with their places in `encoded`."""
    order = sorted(range(len(encoded)), key=lambda index: encoded[index].roles.shape[1])
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(chunk, join(adapter, [encoded[index] for index in chunk])) for chunk in chunks]


def last_logits(
    adapter: Adapter, batches: Sequence[tuple[list[int], Batch]], edits: Edits | None = None
) -> Float[Tensor, "item d_vocab"]:
    """Logits at the last prompt token under plain hooks at every position."""
    found = torch.empty(sum(len(places) for places, _ in batches), adapter.d_vocab)
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in forward_names(adapter.module):
        options["logits_to_keep"] = 1
    for places, batch in batches:
        with lock_of(adapter.module), whole(), _hooked(adapter, edits or {}), torch.no_grad():
            out = adapter.module(**batch.to(adapter.device).inputs, **options)
        found[places] = out.logits[:, -1].float().cpu()
    return found


def mean_inputs(
    adapter: Adapter, batches: Sequence[tuple[list[int], Batch]], positions: Sequence[int]
) -> Float[Tensor, "position layer d_model"]:
    """Mean of each layer's input at positions counted from the end, float64."""
    shape = (len(positions), adapter.n_layers, adapter.d_model)
    total = torch.zeros(shape, dtype=torch.float64)
    n_items = sum(len(places) for places, _ in batches)

    def keep(layer: int) -> Callable[[Tensor], None]:
        def add(value: Tensor) -> None:
            total[:, layer] += value[:, list(positions)].double().sum(dim=0).cpu()

        return add

    for _, batch in batches:
        with lock_of(adapter.module), whole(), contextlib.ExitStack() as hooks, torch.no_grad():
            for layer in range(adapter.n_layers):
                hooks.callback(adapter.hook("resid_pre", layer, keep(layer)).remove)
            adapter.module(**batch.to(adapter.device).inputs, use_cache=False)
    return total / n_items


@contextlib.contextmanager
def _hooked(adapter: Adapter, edits: Edits) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for (site, layer), edit in edits.items():
            hooks.callback(adapter.hook(site, layer, edit).remove)
        yield


def token_ids(adapter: Adapter, tokens: Sequence[int | str]) -> tuple[int, ...]:
    """Ids of refusal tokens; strings must be one token each.

    Raises:
        ValueError: None given, one twice, a string of several or unknown tokens, or an id outside
            the vocabulary.
    """
    found = [one if isinstance(one, int) else _one_token(adapter, one) for one in tokens]
    wrong = [one for one in found if not 0 <= one < adapter.d_vocab]
    if not found or wrong or len(set(found)) != len(found):
        raise ValueError(
            f"refusal tokens {list(tokens)} are the ids {found}; give at least one, each once, "
            f"from 0 to {adapter.d_vocab - 1}"
        )
    return tuple(found)


def _one_token(adapter: Adapter, text: str) -> int:
    if adapter.tokenizer is None:
        raise ValueError(f"{adapter.model_id} has no tokenizer to read {text!r}; give token ids")
    ids = adapter.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == adapter.tokenizer.unk_token_id:
        raise ValueError(
            f"{text!r} is the tokens {ids} for this tokenizer; a refusal token must be one it "
            "knows, such as the first of a refusal"
        )
    return int(ids[0])


def template_positions(
    adapter: Adapter, chats: Sequence[Chat], encoded: Sequence[Batch]
) -> tuple[int, ...]:
    """-k ... -1: positions behind the instruction, where all prompts have the same tokens.

    A few prompts with their words in reverse tell the template from an ending that all prompts
    share.

    Raises:
        ValueError: The prompts end differently, or there is nothing but template.
    """
    turned = [_words_reversed(chat) for chat in chats[:8]]
    rows = [_ids(batch) for batch in (*encoded, *(adapter.encode([chat]) for chat in turned))]
    shortest = min(map(len, rows))
    common = 0
    while common < shortest and len({row[-common - 1] for row in rows}) == 1:
        common += 1
    if not 0 < common < shortest:
        raise ValueError(
            f"the prompts share {common} tokens at their ends, the shortest has {shortest}; they "
            "must end in the same template behind different instructions. Give positions=(-k, ...)"
        )
    return tuple(range(-common, 0))


def check_positions(positions: Sequence[int], encoded: Sequence[Batch]) -> None:
    """Refuse positions that hold different tokens in different prompts.

    Raises:
        ValueError: Names the position, or what is no position.
    """
    wrong = [one for one in positions if one >= 0]
    if not positions or wrong or len(set(positions)) != len(positions):
        raise ValueError(
            f"positions is {list(positions)}; give different negative numbers, -1 is the last"
        )
    rows = [_ids(batch) for batch in encoded]
    for position in positions:
        found = {row[position] if -position <= len(row) else None for row in rows}
        if len(found) > 1 or None in found:
            raise ValueError(
                f"position {position} does not hold the same token in all prompts, so it belongs "
                "to the instruction; candidates come from the template behind it"
            )


def _ids(batch: Batch) -> list[int]:
    ids: list[int] = batch.inputs["input_ids"][0].tolist()
    return ids


def _words_reversed(chat: Chat) -> list[dict[str, Any]]:
    *before, last = [dict(message) for message in chat]
    content = last["content"]
    if isinstance(content, str):
        last["content"] = _reversed(content)
    else:
        last["content"] = [
            {**part, "text": _reversed(part["text"])} if "text" in part else part
            for part in content
        ]
    return [*before, last]


def _reversed(text: str) -> str:
    return " ".join(reversed(text.split()))
