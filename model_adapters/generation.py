"""What a generate call is asked for, and what it returns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.errors import InputError
from model_adapters.validate import check_names


@dataclass(frozen=True, eq=False)
class Generation:
    """Answers to a batch, row by row."""

    tokens: Int[Tensor, "batch new"]
    """New tokens only; after a row's end token, the padding token."""
    lengths: Int[Tensor, "batch"]
    """New tokens of each row up to and including its end token."""
    ended: Bool[Tensor, "batch"]
    """Whether the row ended by itself rather than at `max_new_tokens`."""
    decoded: tuple[str, ...] | None
    """The answers as text, or None where the model was loaded without a tokenizer."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The answers without control tokens and without space around them.

        Raises:
            InputError: when there is no tokenizer to decode with.
        """
        if self.decoded is None:
            raise InputError("no tokenizer to decode with: load the model with processor=")
        return self.decoded

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)


def generation_config(module: Any, pad_id: int, options: Mapping[str, Any]) -> Any:
    """The model's own generation config, made greedy and then changed by `options`.

    Raises:
        InputError: for an option that does not exist, or one that would change the number of rows.
    """
    known = [name for name in module.generation_config.to_dict() if not name.startswith("_")]
    check_names(options, known, "generate")
    for name in ("num_beams", "num_return_sequences"):
        if options.get(name, 1) != 1:
            raise InputError(f"{name} > 1 multiplies rows, so that sites no longer are the batch's")
    if options.get("return_dict_in_generate"):
        raise InputError("return_dict_in_generate is not supported: read sites in the steps")
    count = options["max_new_tokens"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"max_new_tokens is a whole number of at least 1, got {count!r}")
    config = copy.deepcopy(module.generation_config)
    if not options.get("do_sample", False):
        # Checkpoints ship sampling settings, about which a greedy search would warn.
        config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    config.update(pad_token_id=pad_id, **options)
    return config


def read_generation(
    tokens: Int[Tensor, "batch position"],
    prompt: int,
    *,
    pad_id: int,
    ends: frozenset[int],
    tokenizer: Any,
) -> Generation:
    """Split what generate returned into answers.

    Args:
        tokens: prompts and answers.
        prompt: number of prompt positions.
        pad_id: fills up rows that ended early.
        ends: ids of end tokens.
        tokenizer: decodes answers; None if there is none.
    """
    new = tokens[:, prompt:].cpu()
    is_end = torch.isin(new, torch.tensor(sorted(ends), dtype=new.dtype))
    ended = is_end.any(dim=1)
    first = torch.where(ended, is_end.int().argmax(dim=1) + 1, new.shape[1])
    beyond = torch.arange(new.shape[1]) >= first[:, None]
    new = new.masked_fill(beyond, pad_id)
    texts = None
    if tokenizer is not None:
        rows = [row[:n].tolist() for row, n in zip(new, first.tolist(), strict=True)]
        texts = tuple(t.strip() for t in tokenizer.batch_decode(rows, skip_special_tokens=True))
    return Generation(tokens=new, lengths=first, ended=ended, decoded=texts)


def end_tokens(config: Any) -> frozenset[int]:
    """Ids at which a row ends, of a generation config."""
    ends = config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends) if isinstance(ends, list | tuple) else frozenset({int(ends)})
