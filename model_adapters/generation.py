"""What a generate call is asked for, and what it returns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model_adapters.errors import InputError, SiteError
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

    def __enter__(self) -> NoReturn:
        """Refuse a `with` on answers that are already there.

        Raises:
            SiteError: telling the form that opens a trace.
        """
        raise SiteError(
            "this generation has already run. To trace one, write the call itself in the `with`, "
            "by its own name: `with adapter.generate(batch, max_new_tokens=8) as run:`"
        )

    def __exit__(self, *error: object) -> None:
        """Never reached; Python asks for it before it enters."""


# What a checkpoint's generation config says of these holds only if the caller says it too.
_PLAIN: dict[str, Any] = {
    "use_cache": True,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "min_length": 0,
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "use_mtp": False,
    "token_healing": False,
}
# Sampling settings, about which a greedy search would warn.
_GREEDY: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}

_ROWS = "multiplies rows, so that sites no longer are the batch's"
_SEVERAL = "reads several tokens in a pass, so that a pass no longer is a step"
_NO_SEARCH = "is neither greedy search nor sampling"
# The one value that keeps the first pass the prefill and every later one a step; what others do.
_ONLY: dict[str, tuple[Any, str]] = {
    "num_beams": (1, _ROWS),
    "num_return_sequences": (1, _ROWS),
    "return_dict_in_generate": (False, "is not supported: read sites in the steps"),
    "use_cache": (True, "reads the whole prompt again in every step"),
    "guidance_scale": (1.0, "runs a second prompt beside the first"),
    "prefill_chunk_size": (None, "cuts the prefill into several passes"),
    "prompt_lookup_num_tokens": (None, _SEVERAL),
    "assistant_early_exit": (None, _SEVERAL),
    "use_mtp": (False, _SEVERAL),
    "token_healing": (False, "changes the prompt"),
    "stop_strings": (None, "would cut rows where no end token is; cut `texts` instead"),
    "penalty_alpha": (None, _NO_SEARCH),
    "dola_layers": (None, _NO_SEARCH),
    "constraints": (None, _NO_SEARCH),
    "force_words_ids": (None, _NO_SEARCH),
}


def generation_config(module: Any, pad_id: int, options: Mapping[str, Any]) -> Any:
    """A greedy search, changed by `options`.

    Of the model's own generation config these remain: token ids (end, padding, forbidden, forced
    ones), limits on time, and with `do_sample=True` how to sample. Penalties, lengths and beams do
    not. An option given as None is one not given.

    Raises:
        InputError: for an option that does not exist, or with which passes no longer are the
            prefill and one step for each new token of the batch's rows.
    """
    known = [name for name in module.generation_config.to_dict() if not name.startswith("_")]
    check_names(options, known, "generate")
    if "eos_token_id" in options and options["eos_token_id"] is None:
        raise InputError("eos_token_id=None: to answer on past end tokens, give min_new_tokens")
    options = {name: value for name, value in options.items() if value is not None}
    count = options["max_new_tokens"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"max_new_tokens is a whole number of at least 1, got {count!r}")
    config = copy.deepcopy(module.generation_config)
    plain = _PLAIN if options.get("do_sample", False) else {**_PLAIN, **_GREEDY}
    plain = {
        name: value for name, value in plain.items() if getattr(config, name, None) is not None
    }
    settings = {**plain, "pad_token_id": pad_id, **options}
    for name, (value, why) in _ONLY.items():
        given = settings.get(name, getattr(config, name, None))
        if given is not None and given != value:
            source = "" if name in options else " (set in adapter.module.generation_config)"
            raise InputError(f"{name}={given!r}{source} {why}; leave it at {value!r}")
    config.update(**settings)
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
