"""What a call of the raw model holds, against the batch it came from."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import StaticCache

from model_adapters import Adapter, Batch, Call, InputError, Role


def calls_of(adapter: Adapter, inputs: dict[str, Tensor], **options: Any) -> list[Call]:
    """Every call that `generate` makes of the raw model, as a hook on it reads them."""
    calls: list[Call] = []
    handle = adapter.module.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(adapter.read_call(kwargs)), with_kwargs=True
    )
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    adapter.module.generate(**inputs, **(settings | options))
    handle.remove()
    return calls


def test_modalities_of_a_batch(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind)
    assert batch.modalities == ("text", "image", "audio", "video", "omni")


def test_two_images_are_one_kind_of_media(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user(parts.picture(), parts.picture(2, 4))])
    assert batch.modalities == ("image",)


def test_calls_of_generate(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind)
    prefill, *steps = calls_of(adapter, batch.inputs)
    assert torch.equal(prefill.roles, batch.roles)
    assert torch.equal(prefill.prompt_mask, batch.prompt_mask)
    assert torch.equal(prefill.last, batch.last)
    assert torch.equal(prefill.mask("image"), batch.mask(Role.IMAGE))
    assert prefill.modalities == batch.modalities
    assert len(prefill) == len(batch)
    assert (prefill.phase, prefill.past) == ("prefill", 0)
    width = batch.roles.shape[1]
    assert [(step.phase, step.past) for step in steps] == [("decode", width), ("decode", width + 1)]
    assert all(step.roles.shape == (len(batch), 1) for step in steps)


def test_beams_are_rows(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6"), parts.user(parts.picture())])
    prefill, *steps = calls_of(adapter, batch.inputs, num_beams=2)
    assert torch.equal(prefill.roles, batch.roles.repeat_interleave(2, dim=0))
    assert prefill.modalities == ("text", "text", "image", "image")
    assert [step.phase for step in steps] == ["decode", "decode"]


def test_a_later_turn_holds_its_new_positions(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6"), parts.user(parts.picture())])
    options = {"max_new_tokens": 2, "pad_token_id": 0, "return_dict_in_generate": True}
    first = adapter.module.generate(**batch.inputs, min_new_tokens=2, **options)
    new = torch.tensor([[0, 0, 8], [9, 10, 11]])
    ids = torch.cat([first.sequences, new], dim=1)
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones(2, 2).long(), new != 0], dim=1)
    turn, *_ = calls_of(
        adapter,
        {"input_ids": ids, "attention_mask": mask},
        past_key_values=first.past_key_values,
    )
    assert (turn.phase, turn.past) == ("prefill", batch.roles.shape[1] + 1)
    assert turn.modalities == ("text", "text")
    # The last answer's last token was not read yet.
    assert turn.prompt_mask.tolist() == [[True, False, False, True], [True] * 4]
    assert turn.last.tolist() == [3, 3]


def test_a_call_without_mask_or_cache(adapter: Adapter) -> None:
    call = adapter.read_call({"input_ids": torch.tensor([[5, 6, 7]]), "use_cache": True})
    assert (call.phase, call.past, call.modalities) == ("prefill", 0, ("text",))
    assert bool(call.prompt_mask.all())


def test_right_padding(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch: Batch = adapter.encode(requests_of_every_kind, padding_side="right")
    call = adapter.read_call(batch.inputs)
    assert torch.equal(call.roles, batch.roles)
    assert torch.equal(call.last, batch.last)


def test_a_text_model(text_adapter: Adapter) -> None:
    ids = torch.tensor([[0, 5, 6], [7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    prefill, *_ = calls_of(text_adapter, inputs)
    assert torch.equal(prefill.roles, text_adapter.describe(**inputs).roles)


def test_calls_that_do_not_say_what_they_hold(adapter: Adapter) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(InputError, match=r"called without input_ids.*instead of inputs_embeds"):
        adapter.read_call({"inputs_embeds": torch.zeros(1, 3, 32)})
    with pytest.raises(InputError, match="not of 4 axes; masks made beforehand"):
        adapter.read_call({"input_ids": ids, "attention_mask": torch.zeros(1, 1, 3, 3)})
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 2\)"):
        adapter.read_call({"input_ids": ids, "attention_mask": torch.ones(1, 2)})
    with pytest.raises(InputError, match=r"must be \[batch, position\]; their shape is \(3,\)"):
        adapter.read_call({"input_ids": ids[0]})


def test_static_caches_are_refused(text_adapter: Adapter) -> None:
    cache = StaticCache(config=text_adapter.module.config, max_cache_len=8)
    assert isinstance(cache, transformers.cache_utils.Cache)
    with pytest.raises(InputError, match="not dict; masks made beforehand come with static caches"):
        calls_of(
            text_adapter,
            {"input_ids": torch.tensor([[5, 6, 7]])},
            past_key_values=cache,
        )
