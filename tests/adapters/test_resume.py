"""Layers run again within a pass, against whole passes."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nnsight
import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache, StaticCache

import model_adapters
from model_adapters import (
    Adapter,
    Batch,
    LayerCalls,
    LayerError,
    RowCache,
    SiteError,
    cache_obstacle,
    resume_obstacle,
)
from model_adapters.resume_probe import LayerArguments

START = 1
"""Layer after whose output the tests resume."""


def later(adapter: Adapter) -> range:
    return range(START + 1, adapter.n_layers)


@contextmanager
def listening(adapter: Adapter) -> Iterator[tuple[LayerCalls, list[Tensor]]]:
    """The calls of the later layers, and the stream before them, of every pass."""
    calls = LayerCalls(adapter, later(adapter))
    states: list[Tensor] = []
    handle = adapter.hook("resid_post", START, states.append)
    try:
        yield calls, states
    finally:
        handle.remove()
        calls.remove()


def resumed(
    adapter: Adapter, calls: LayerCalls, states: Tensor, rows: Tensor | None, cache: Any = None
) -> Tensor:
    """Logits from the stream after layer `START`."""
    with torch.no_grad():
        for layer in later(adapter):
            states = calls.rerun(layer, states, rows, cache)
        return adapter.unembed(states)


def forward(adapter: Adapter, batch: Batch, **options: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = adapter.module(**batch.inputs, **options).logits
        return logits


def texts(adapter: Adapter, padding: str, rows: int) -> Batch:
    """Rows of random text of different lengths."""
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(3, 99, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        if padding == "left":
            mask[row, : row % 5] = 0
        elif padding == "right":
            mask[row, 7 - row % 5 :] = 0
    return adapter.describe(input_ids=ids.masked_fill(mask == 0, 0), attention_mask=mask)


def batches(request: Any, adapter: Adapter, requests: Any) -> Batch:
    kind, _, side = request.partition("-")
    if kind == "media":
        return adapter.encode(requests, padding_side=side)
    return texts(adapter, side, int(kind))


BATCHES = ["media-left", "media-right", "3-left", "3-right", "3-none", "2-left", "1-none"]


@pytest.mark.parametrize("kind", BATCHES)
def test_running_later_layers_again_is_the_full_forward(
    adapter: Adapter, requests_of_every_kind: Any, kind: str
) -> None:
    batch = batches(kind, adapter, requests_of_every_kind)
    with listening(adapter) as (calls, states):
        full = forward(adapter, batch)
        assert torch.equal(resumed(adapter, calls, states[0], None), full)


@pytest.mark.parametrize("kind", ["media-left", "media-right", "3-left", "3-right", "3-none"])
@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 1, 2]])
def test_some_rows_are_those_of_the_full_forward(
    adapter: Adapter, requests_of_every_kind: Any, kind: str, rows: list[int]
) -> None:
    batch = batches(kind, adapter, requests_of_every_kind)
    chosen = torch.tensor(rows)
    with listening(adapter) as (calls, states):
        full = forward(adapter, batch)
        some = resumed(adapter, calls, states[0][chosen], chosen)
    torch.testing.assert_close(some, full[chosen], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_a_text_model_is_resumed_too(text_adapter: Adapter, padding: str) -> None:
    batch = texts(text_adapter, padding, 3)
    rows = torch.tensor([2, 1])
    assert resume_obstacle(text_adapter, START) is None
    with listening(text_adapter) as (calls, states):
        full = forward(text_adapter, batch)
        assert torch.equal(resumed(text_adapter, calls, states[0], None), full)
        some = resumed(text_adapter, calls, states[0][rows], rows)
        torch.testing.assert_close(some, full[rows], atol=1e-5, rtol=1e-5)
        # Without a mask, position codes have no rows at all.
        bare = text_adapter.describe(input_ids=batch.inputs["input_ids"])
        full = forward(text_adapter, bare)
        some = resumed(text_adapter, calls, states[1][rows], rows)
    torch.testing.assert_close(some, full[rows], atol=1e-5, rtol=1e-5)


def test_an_edit_by_resuming_is_an_edit_of_the_pass(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    vector = torch.linspace(-3, 3, adapter.d_model)
    with adapter.trace(batch):
        adapter.resid_post[START] = adapter.resid_post[START] + vector
        expected = adapter.logits.save()
    with listening(adapter) as (calls, states):
        forward(adapter, batch)
        assert torch.equal(resumed(adapter, calls, states[0] + vector, None), expected)


def correct(
    adapter: Adapter, calls: LayerCalls, states: list[Tensor], rows: Tensor | None, at: int
) -> Any:
    """A hook on `resid_post[at]` that shifts the stream of `rows` at START after the fact."""
    vector = torch.linspace(-3, 3, adapter.d_model)

    def hook(value: Tensor) -> Tensor | None:
        if calls.running or value.shape[1] == 1:
            return None
        layers = range(START + 1, at + 1)
        scratch = RowCache(calls.cache(at), layers, rows, calls.past(at))
        new = (states[-1] if rows is None else states[-1][rows]) + vector
        for layer in layers:
            new = calls.rerun(layer, new, rows, scratch.cache)
        scratch.write_back()
        return new if rows is None else value.index_copy(0, rows, new)

    return hook


def shift(adapter: Adapter, rows: Tensor | None) -> Any:
    """The same edit by a hook from the start."""
    vector = torch.linspace(-3, 3, adapter.d_model)

    def hook(value: Tensor) -> Tensor | None:
        if value.shape[1] == 1:
            return None
        return (
            value + vector
            if rows is None
            else value.index_add(0, rows, vector.expand_as(value[rows]))
        )

    return hook


def generated(adapter: Adapter, inputs: dict[str, Tensor], **options: Any) -> Any:
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "output_logits": True, **options}
    return adapter.module.generate(**inputs, **settings)


@pytest.mark.parametrize("rows", [None, [3, 1]], ids=["all rows", "some rows"])
@pytest.mark.parametrize("beams", [1, 2])
def test_decoding_goes_on_from_the_corrected_cache(
    adapter: Adapter, requests_of_every_kind: Any, rows: list[int] | None, beams: int
) -> None:
    inputs = adapter.encode(requests_of_every_kind).inputs
    # With beams, the first beam of these requests: the others do not count in the first step.
    chosen = None if rows is None else beams * torch.tensor(rows)
    plain = generated(adapter, inputs, num_beams=beams)
    handle = adapter.hook("resid_post", START, shift(adapter, chosen))
    expected = generated(adapter, inputs, num_beams=beams)
    handle.remove()
    last = adapter.n_layers - 1
    with listening(adapter) as (calls, states):
        handle = adapter.hook("resid_post", last, correct(adapter, calls, states, chosen, last))
        corrected = generated(adapter, inputs, num_beams=beams)
        handle.remove()
    assert torch.equal(corrected.sequences, expected.sequences)
    for ours, theirs, before in zip(corrected.logits, expected.logits, plain.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours, before, atol=1e-2)


@pytest.mark.parametrize("rows", [None, [1]], ids=["all rows", "some rows"])
def test_a_later_turn_on_a_kept_cache_is_corrected(
    adapter: Adapter, parts: Any, rows: list[int] | None
) -> None:
    inputs = adapter.encode([parts.user("w5 w6 w7"), parts.user(parts.picture())]).inputs
    chosen = None if rows is None else torch.tensor(rows)
    last = adapter.n_layers - 1

    def two_turns(install: Callable[[], None]) -> Any:
        first = generated(adapter, inputs)
        ids = torch.cat([first.sequences, torch.tensor([[8, 9, 10], [11, 12, 13]])], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 8, dtype=torch.long)], dim=1)
        install()
        both = {"input_ids": ids, "attention_mask": mask}
        return generated(adapter, both, past_key_values=first.past_key_values)

    handles: list[Any] = []
    expected = two_turns(
        lambda: handles.append(adapter.hook("resid_post", START, shift(adapter, chosen)))
    )
    handles.pop().remove()
    with listening(adapter) as (calls, states):
        fix = correct(adapter, calls, states, chosen, last)
        corrected = two_turns(lambda: handles.append(adapter.hook("resid_post", last, fix)))
        handles.pop().remove()
    assert torch.equal(corrected.sequences, expected.sequences)
    for ours, theirs in zip(corrected.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_hidden_states_that_transformers_collects_stay_one_a_layer(
    adapter: Adapter, parts: Any
) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with torch.no_grad():
        before = adapter.module(**batch.inputs, output_hidden_states=True).hidden_states
    with listening(adapter) as (calls, states):
        last = adapter.n_layers - 1
        again: list[Tensor] = []

        def rerun(value: Tensor) -> None:
            if not calls.running:
                again.append(resumed(adapter, calls, states[-1], None))

        handle = adapter.hook("resid_post", last, rerun)
        with torch.no_grad():
            after = adapter.module(**batch.inputs, output_hidden_states=True).hidden_states
        handle.remove()
    assert len(again) == 1
    assert len(after) == len(before) == adapter.n_layers + 1
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, before, strict=True))


def test_an_open_trace_is_not_disturbed(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind)
    vector = torch.linspace(-3, 3, adapter.d_model)
    rows = torch.tensor([3, 1])
    with adapter.trace(batch):
        adapter.resid_post[START] = adapter.resid_post[START] + vector
        edited = adapter.logits.save()
    with listening(adapter) as (calls, states), adapter.trace(batch):
        before = adapter.resid_post[START].clone().save()
        attn = adapter.attn_out[START + 1].save()
        after = adapter.resid_post[START + 1].save()
        branch = calls.rerun(START + 1, states[0][rows] + vector, rows, None)
        mid = adapter.resid_mid[START + 2].save()
        adapter.resid_post[-1].save()
        probe = resumed(adapter, calls, states[0] + vector, None)
        probed = nnsight.save(torch.equal(probe, edited))
        width = nnsight.save(tuple(branch.shape))
        logits = adapter.logits.save()
    assert probed
    assert width == (2, *before.shape[1:])
    with adapter.trace(batch):
        assert torch.equal(adapter.resid_post[START], before)
        assert torch.equal(adapter.attn_out[START + 1], attn)
        assert torch.equal(adapter.resid_post[START + 1], after)
        assert torch.equal(adapter.resid_mid[START + 2], mid)
        assert torch.equal(adapter.logits, logits)


def test_a_correction_by_hooks_works_under_a_trace(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    rows = torch.tensor([3, 1])
    handle = adapter.hook("resid_post", START, shift(adapter, rows))
    expected = forward(adapter, batch)
    handle.remove()
    at = START + 1
    with listening(adapter) as (calls, states):
        handle = adapter.hook("resid_post", at, correct(adapter, calls, states, rows, at))
        with adapter.trace(batch):
            before = adapter.resid_mid[at].save()
            after = adapter.resid_mid[at + 1].save()
            logits = adapter.logits.save()
        handle.remove()
    assert before.shape == after.shape, "a trace sees each layer once, for the whole batch"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_hooks_of_others_see_a_layer_run_again(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6"), parts.user("w7 w8")])
    rows = torch.tensor([1])
    seen: list[int] = []
    handle = adapter.hook("mlp_out", START + 1, lambda value: seen.append(len(value)))
    other = LayerCalls(adapter, [START + 1])
    with listening(adapter) as (calls, states):
        forward(adapter, batch)
        calls.rerun(START + 1, states[0][rows], rows, None)
        assert not calls.running
        whole = other.rerun(START + 1, states[0], None, None)
    handle.remove()
    other.remove()
    assert seen == [2, 1, 2]
    assert len(whole) == 2, "what was run again for one row is not the call of another listener"


def test_trying_the_layers_leaves_no_trace(
    fresh_thinker: Callable[[], Any], small_processor: Any, parts: Any
) -> None:
    adapter = model_adapters.load(fresh_thinker(), processor=small_processor)
    batch = adapter.encode([parts.user("w5", parts.picture()), parts.user("w6 w7")])
    seen: list[Tensor] = []
    adapter.hook("resid_post", 0, seen.append)
    foreign: list[int] = []
    adapter.module.register_forward_hook(lambda module, args, output: foreign.append(1))
    forward(adapter, batch)
    deltas = adapter.module.model.rope_deltas
    hooks = {name: dict(part._forward_hooks) for name, part in adapter.module.named_modules()}
    with adapter.trace(batch):
        obstacle = nnsight.save([resume_obstacle(adapter, 0)])
        states = adapter.resid_post[1].save()
        visits = adapter.logits.save()
    assert obstacle == [None]
    assert states.shape[0] == visits.shape[0] == 2
    assert adapter.module.model.rope_deltas is not None
    assert torch.equal(adapter.module.model.rope_deltas, deltas)
    assert (len(seen), len(foreign)) == (2, 2)
    after = {name: dict(part._forward_hooks) for name, part in adapter.module.named_modules()}
    assert after == hooks


def test_a_model_that_adds_between_layers(adapter: Adapter, monkeypatch: Any) -> None:
    checked = dataclasses.replace(adapter.self_check, discontinuities=(0, 2))
    monkeypatch.setattr(adapter, "self_check", checked)
    for layer in (0, 1, 2):
        obstacle = resume_obstacle(adapter, layer)
        assert obstacle is not None
        assert "after layer 2, outside its layers" in obstacle
        assert "from the output of layer 3 on" in obstacle
    assert resume_obstacle(adapter, 3) is None
    assert resume_obstacle(adapter, -1) is None


def test_layers_that_remember_cannot_be_resumed(fresh_thinker: Callable[[], Any]) -> None:
    """A layer whose output depends on how often it has run fails the trial, in words."""
    adapter = model_adapters.load(fresh_thinker())
    layer = adapter.module.model.language_model.layers[2].mlp.down_proj

    class Forgetful(torch.nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(1.5)
            return super().forward(states)

    layer.__class__ = Forgetful
    layer.__dict__["forward"].state.body = Forgetful.forward
    obstacle = resume_obstacle(adapter, 0)
    assert obstacle is not None
    assert "layer 2 gave another output when it was run again" in obstacle
    with pytest.raises(SiteError, match="layers cannot be run again"):
        LayerCalls(adapter, [1])


def test_an_argument_nobody_has_tried(adapter: Adapter, parts: Any, monkeypatch: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6"), parts.user("w7 w8 w9")])
    found = adapter.layer_arguments
    less = {key: axis for key, axis in found.axes.items() if key[0] != ("attention_mask",)}
    monkeypatch.setattr(adapter, "layer_arguments", LayerArguments(less))
    with listening(adapter) as (calls, states):
        forward(adapter, batch)
        with pytest.raises(SiteError, match=r"called with attention_mask of shape \(2, 1, 4, 4\)"):
            resumed(adapter, calls, states[0], None)


@pytest.mark.usefixtures("as_users_run_it")
def test_what_cannot_be_rerun(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6"), parts.user("w7 w8 w9")])
    with listening(adapter) as (calls, states):
        with pytest.raises(SiteError, match="layer 2 has not run since listening began"):
            calls.rerun(2, torch.zeros(2, 4, adapter.d_model), None, None)
        forward(adapter, batch)
        with pytest.raises(SiteError, match=r"layer 2 is run again for 1 rows of 4 positions"):
            calls.rerun(2, states[0], torch.tensor([1]), None)
        with pytest.raises(SiteError, match=r"not listened to \(those that have: \[2, 3\]\)"):
            calls.rerun(0, states[0], None, None)
        forward(adapter, batch, use_cache=False)
        assert calls.cache(2) is None
        with pytest.raises(SiteError, match="this pass keeps no cache"):
            calls.rerun(2, states[0], None, DynamicCache())
        calls.clear()
        with pytest.raises(SiteError, match="layer 2 has not run"):
            calls.past(2)
    with pytest.raises(LayerError):
        LayerCalls(adapter, [4])


def test_earlier_positions_need_a_cache(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with listening(adapter) as (calls, states):
        with torch.no_grad():
            cache = adapter.module(**batch.inputs, use_cache=True).past_key_values
            adapter.module(
                input_ids=torch.tensor([[8, 9]]),
                attention_mask=torch.ones(1, 6, dtype=torch.long),
                position_ids=torch.tensor([4, 5]).expand(3, 1, 2),
                past_key_values=cache,
            )
        assert calls.past(2) == 4
        with pytest.raises(SiteError, match="layer 2 attended to 4 positions before this pass"):
            calls.rerun(2, states[-1], None, None)
        scratch = RowCache(calls.cache(2), [2], None, calls.past(2))
        assert calls.rerun(2, states[-1], None, scratch.cache).shape == (1, 2, adapter.d_model)


def test_a_pass_without_cache_needs_none(adapter: Adapter) -> None:
    scratch = RowCache(None, [2, 3], None, 0)
    assert scratch.cache is None
    scratch.write_back()


def test_kinds_of_cache(adapter: Adapter) -> None:
    config = adapter.module.config.get_text_config()
    assert cache_obstacle(None) is None
    assert cache_obstacle(DynamicCache()) is None
    static = StaticCache(config=config, max_cache_len=8)
    assert (
        cache_obstacle(static) == "its cache is a StaticCache; only a DynamicCache can be corrected"
    )
    with pytest.raises(SiteError, match="only a DynamicCache can be corrected"):
        RowCache(static, [1], None, 0)


@pytest.fixture
def window_adapter() -> Adapter:
    """A text model whose layers see four positions back, two in turn with all."""
    config = transformers.Qwen2Config(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        initializer_range=0.2,
        use_sliding_window=True,
        sliding_window=4,
        layer_types=["full_attention", "sliding_attention"] * 2,
    )
    torch.manual_seed(0)
    return model_adapters.load(transformers.Qwen2ForCausalLM(config))


def test_windows_of_attention_are_resumed(window_adapter: Adapter) -> None:
    adapter = window_adapter
    inputs = texts(adapter, "left", 3).inputs
    rows = torch.tensor([2, 0])
    handle = adapter.hook("resid_post", START, shift(adapter, rows))
    expected = generated(adapter, inputs)
    handle.remove()
    with listening(adapter) as (calls, states):
        handle = adapter.hook("resid_post", 3, correct(adapter, calls, states, rows, 3))
        corrected = generated(adapter, inputs)
        handle.remove()
    for ours, theirs in zip(corrected.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    obstacle = cache_obstacle(corrected.past_key_values, past=7)
    assert obstacle == "layer 1 of its cache is a window that has moved over earlier positions"


def test_gradients_flow_through_layers_run_again(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7"), parts.user("w5 w6 w8")])
    rows = torch.tensor([1])
    with listening(adapter) as (calls, states):
        adapter.module(**batch.inputs, use_cache=True)
        scratch = RowCache(calls.cache(3), [2, 3], rows, 0)
        start = states[0][rows].detach().requires_grad_()
        after = calls.rerun(3, calls.rerun(2, start, rows, scratch.cache), rows, scratch.cache)
        scratch.write_back()
    (gradient,) = torch.autograd.grad(after.square().sum(), start)
    assert gradient.abs().sum() > 0
