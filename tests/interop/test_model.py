"""A batch as TransformerLens's model: patching with the media kept."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_protocol import TransformerLensModel, TransformerLensModelWithWeights

import model_adapters
from model_adapters import Adapter
from model_adapters.batch import Role
from model_adapters.errors import InputError, SiteError
from model_adapters.probe import example
from regap_interp.interop import TLModel, as_tl_model
from tests.interop.conftest import Made

Tiny = Callable[[str], Made]
Metric = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens draws a bar for every sweep."""
    monkeypatch.setattr(patching, "tqdm", list)


@pytest.fixture
def model(tiny: Tiny) -> TLModel:
    """The thinker with an image, an audio and a video."""
    return as_tl_model(*tiny("qwen2_5_omni_thinker"))


def corrupted(model: TLModel) -> Tensor:
    """The batch's ids with the words of every row in another order."""
    ids = model.to_tokens().clone()
    roles = model._adapter.describe(**{**model._batch.inputs, "input_ids": ids}).roles
    for row, places in enumerate(roles == Role.TEXT):
        ids[row, places] = ids[row, places].roll(1)
    assert not torch.equal(ids, model.to_tokens())
    return ids


def by_hand(adapter: Adapter, inputs: Any, path: str, place: int, clean: Tensor) -> Tensor:
    """Logits with one position of a module's input replaced, by a plain hook."""

    def hook(_: Any, args: Any, kwargs: Any) -> Any:
        states = args[0].clone()
        states[:, place] = clean[:, place]
        return (states, *args[1:]), kwargs

    handle = adapter.module.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        logits: Tensor = adapter.module(**inputs).logits
    handle.remove()
    return logits


def test_it_is_what_transformer_lens_calls_a_model(model: TLModel) -> None:
    assert isinstance(model, TransformerLensModel)
    assert isinstance(model, TransformerLensModelWithWeights)
    adapter = model._adapter
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.n_key_value_heads) == (
        adapter.n_layers,
        adapter.n_heads,
        2,
    )
    assert (model.cfg.d_model, model.cfg.d_vocab) == (adapter.d_model, adapter.d_vocab)
    assert model.blocks[0].attn.W_O.shape == (adapter.n_heads, adapter.d_head, adapter.d_model)


def test_runs_keep_the_media(model: TLModel, tiny: Tiny, metric: Metric) -> None:
    adapter, batch = tiny("qwen2_5_omni_thinker")
    ids = corrupted(model)
    with torch.no_grad():
        expected = adapter.module(**{**batch.inputs, "input_ids": ids}).logits
    assert torch.equal(model.run_with_hooks(ids), expected)
    _, cache = model.run_with_cache()
    swept = patching.get_act_patch_attn_head_out_all_pos(model, ids, cache, metric, baseline=True)
    assert swept.baseline == metric(expected)


def test_a_patching_grid_is_what_plain_hooks_give(tiny: Tiny, metric: Metric) -> None:
    adapter = tiny("qwen2_5_omni_thinker").adapter
    batch = adapter.describe(**example(adapter.module, adapter.family, ["image"]))
    model = as_tl_model(adapter, batch)
    ids = corrupted(model)
    _, clean = model.run_with_cache()
    grid = patching.get_act_patch_resid_pre(model, ids, clean, metric)
    assert grid.shape == (adapter.n_layers, ids.shape[1])
    assert len(grid.unique()) > adapter.n_layers
    inputs = {**batch.inputs, "input_ids": ids}
    for layer, place in ((0, 0), (1, 1), (2, 4), (3, -1)):
        path = f"{adapter.layout.layers}.{layer}"
        expected = metric(by_hand(adapter, inputs, path, place, clean["resid_pre", layer]))
        assert grid[layer, place] == expected


def test_patching_everything_before_the_first_layer_restores_the_clean_run(
    model: TLModel, metric: Metric
) -> None:
    clean_logits, clean = model.run_with_cache()
    patched = model.run_with_hooks(
        corrupted(model), [("hook_embed", lambda value, hook: clean[hook.name])]
    )
    assert torch.equal(patched, clean_logits)


def test_another_picture_is_patched_in_from_another_batch(tiny: Tiny, metric: Metric) -> None:
    adapter, batch = tiny("qwen3_vl")
    changed = {**batch.inputs, "pixel_values": batch.inputs["pixel_values"].flip(-1)}
    model, other = as_tl_model(adapter, batch), as_tl_model(adapter, adapter.describe(**changed))
    logits, clean = model.run_with_cache()
    assert not torch.equal(other.run_with_hooks(), logits)
    whole = [
        (f"blocks.{layer}.hook_resid_pre", lambda value, hook: clean[hook.name])
        for layer in range(adapter.n_layers)
    ]
    assert torch.equal(other.run_with_hooks(None, whole), logits)
    grid = patching.get_act_patch_attn_head_out_all_pos(other, other.to_tokens(), clean, metric)
    assert len(grid.unique()) > 1


SWEEPS: tuple[Any, ...] = (
    patching.get_act_patch_attn_head_q_all_pos,
    patching.get_act_patch_attn_head_k_all_pos,
    patching.get_act_patch_attn_head_v_all_pos,
    patching.get_act_patch_attn_head_out_all_pos,
)


@pytest.mark.parametrize("sweep", SWEEPS, ids=["q", "k", "v", "out"])
def test_heads_can_be_patched(model: TLModel, metric: Metric, sweep: Any) -> None:
    _, clean = model.run_with_cache()
    grid = sweep(model, corrupted(model), clean, metric)
    heads = model.cfg.n_key_value_heads if sweep in SWEEPS[1:3] else model.cfg.n_heads
    assert grid.shape == (model.cfg.n_layers, heads)
    assert len(grid.unique()) > 1


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "qwen2_5_omni_thinker"])
def test_a_hook_that_changes_nothing_changes_nothing(tiny: Tiny, name: str) -> None:
    model = as_tl_model(*tiny(name))
    plain = model.run_with_hooks()
    everywhere = [(name, lambda value, hook: None) for name in model.hook_names]
    assert torch.equal(model.run_with_hooks(None, everywhere), plain)


def test_what_a_hook_returns_and_what_it_changes_in_place_arrive(model: TLModel) -> None:
    def returned(value: Tensor, hook: Any) -> Tensor:
        return value * 0

    def in_place(value: Tensor, hook: Any) -> None:
        value.zero_()

    plain = model.run_with_hooks()
    assert plain is not None
    for name in (
        "hook_embed",
        "blocks.1.hook_resid_pre",
        "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_v",
        "blocks.1.attn.hook_z",
        "blocks.1.attn.hook_result",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_resid_mid",
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_resid_post",
        "ln_final.hook_out",
        "unembed.hook_out",
    ):
        first, second = (model.run_with_hooks(None, [(name, fn)]) for fn in (returned, in_place))
        assert not torch.equal(first, plain), name
        assert torch.equal(first, second), name


def test_hooks_know_their_place_and_leave_the_model_alone(model: TLModel) -> None:
    module = model.original_model
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    seen: list[Any] = []

    def look(value: Tensor, hook: Any) -> None:
        seen.append((hook.name, hook.layer(), value.shape))

    shape = model.to_tokens().shape
    logits = model.run_with_hooks(
        None, [(lambda name: name.endswith("hook_mlp_out"), look)], return_type=None
    )
    assert logits is None
    layers = range(model.cfg.n_layers)
    width = model.cfg.d_model
    assert seen == [(f"blocks.{n}.hook_mlp_out", n, (*shape, width)) for n in layers]

    def fail(value: Tensor, hook: Any) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        model.run_with_hooks(None, [("hook_embed", fail)])
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
    assert after == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.9.hook_resid_pre", "no hook 'blocks.9.hook_resid_pre'"),
        ("hook_pos_embed", "see hook_names"),
        ("blocks.0.mlp.hook_post", "see hook_names"),
    ],
)
def test_unknown_names_are_refused(model: TLModel, name: str, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        model.run_with_hooks(None, [(name, lambda value, hook: None)])


def test_patterns_are_read_and_refused_where_they_cannot_be_had(tiny: Tiny) -> None:
    made = tiny("qwen2")
    model = as_tl_model(*made)
    _, cache = model.run_with_cache()
    pattern = cache["pattern", 0]
    batch, length = model.to_tokens().shape
    assert pattern.shape == (batch, model.cfg.n_heads, length, length)
    with pytest.raises(SiteError, match="read, not changed"):
        model.run_with_hooks(None, [("blocks.0.attn.hook_pattern", lambda value, hook: value)])
    module = type(made.adapter.module)(made.adapter.module.config).eval()
    module.set_attn_implementation("sdpa")
    fast = model_adapters.load(module)
    with pytest.raises(SiteError, match='attn_implementation="eager"'):
        as_tl_model(fast, made.batch).run_with_cache(names_filter="blocks.0.attn.hook_pattern")


def test_values_of_another_shape_are_refused(model: TLModel) -> None:
    for name in ("blocks.0.attn.hook_q", "blocks.0.hook_resid_pre"):
        with pytest.raises(SiteError, match="shape"):
            model.run_with_hooks(None, [(name, lambda value, hook: value[:, :1])])


def test_tokens_must_fit_the_batch(model: TLModel) -> None:
    ids = model.to_tokens()
    with pytest.raises(InputError, match="make another one"):
        model.run_with_hooks(ids[:1])
    config = model.original_model.config
    moved = ids.clone()
    place = int((ids[1] == config.image_token_id).nonzero()[0])
    moved[1, place], moved[1, place + 2] = 5, config.image_token_id
    with pytest.raises(InputError):
        model.run_with_hooks(moved)
    fewer = ids.clone()
    fewer[1, place] = 5
    with pytest.raises(InputError):
        model.run_with_hooks(fewer)
    with pytest.raises(InputError, match="where the media go"):
        model.to_tokens("a text")
    assert torch.equal(model.to_tokens(corrupted(model)), corrupted(model))


def test_placeholders_that_moved_together_are_refused(tiny: Tiny) -> None:
    adapter, batch = tiny("llava")
    model = as_tl_model(adapter, batch)
    ids = model.to_tokens()
    config = adapter.module.config
    row = ids[1].tolist()
    first = row.index(config.image_token_id)
    count = row.count(config.image_token_id)
    assert row[first + count] != config.image_token_id
    moved = ids.clone()
    moved[1, first], moved[1, first + count] = row[first + count], config.image_token_id
    with pytest.raises(InputError, match="stand elsewhere"):
        model.run_with_hooks(moved)


def test_single_tokens_and_return_types(model: TLModel, random_organism: Adapter) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        model.to_single_token("word")
    with pytest.raises(InputError, match="return_type"):
        model.run_with_hooks(return_type="loss")
    batch = random_organism.encode([[{"role": "user", "content": "lena"}]])
    worded = as_tl_model(random_organism, batch)
    token = worded.to_single_token("sorry")
    assert random_organism.tokenizer.decode([token]).strip() == "sorry"
    with pytest.raises(InputError, match="one token"):
        worded.to_single_token("sorry i cannot")
    assert torch.equal(
        worded.tokens_to_residual_directions("sorry"), worded.tokens_to_residual_directions(token)
    )
    with pytest.raises(InputError, match="ids from 0"):
        worded.tokens_to_residual_directions(10**6)


def test_runs_inside_a_trace_are_refused(model: TLModel, tiny: Tiny) -> None:
    adapter, batch = tiny("qwen2_5_omni_thinker")
    with pytest.raises(ValueError, match="outside of any trace"), adapter.trace(batch):
        model.run_with_hooks()


def test_without_transformer_lens_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "regap_interp.interop")
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(ImportError, match=r"pip install \"regap-interp\[tl\]\""):
        importlib.import_module("regap_interp.interop")
