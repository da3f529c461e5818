"""Other families: resumed where that is right, whole passes where it is not, always the same."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

import model_adapters
import regap_interp as ri
from analyses.patching import LogitDifference, Pair, attribution_sweep, patch_sweep
from model_adapters import Adapter, Batch
from model_adapters.probe import example
from model_adapters.tiny import builders
from tests.patching.reference import layers_of

METRIC = LogitDifference(right=3, wrong=7)
CAUSAL = "llava", "qwen2_audio"


def runs(adapter: Adapter, kind: str | None) -> tuple[Batch, Batch]:
    """Two prompts of the same length with an item of a medium."""
    kinds: Any = () if kind is None else (kind,)
    module, family = adapter.module, adapter.family
    first, second = (
        adapter.describe(**example(module, family, kinds, size=1, seed=seed)) for seed in (1, 4)
    )
    return first, second


@contextlib.contextmanager
def input_hook(adapter: Adapter, layer: int, edit: Any) -> Any:
    """A plain hook on what enters a layer; of several streams (AltUp), on the active one."""
    stream = getattr(adapter.module.config.get_text_config(), "altup_active_idx", None)

    def hook(_: Any, args: Any, kwargs: Any) -> Any:
        value = args[0]
        new = value.clone()
        if stream is None:
            new[:] = edit(value)
        else:
            new[stream] = edit(value[stream])
        return (new, *args[1:]), kwargs

    module = layers_of(adapter.module)[layer]
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def by_hand(
    adapter: Adapter, base: Batch, source: Batch, layer: int, into: list[int], taken: list[int]
) -> float:
    """The metric with states that enter a layer replaced by a mean of the other run's."""
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value.clone())
        return value

    def put(value: Tensor) -> Tensor:
        new = value.clone()
        new[0, into] = kept[0][0, taken].mean(dim=0)
        return new

    with input_hook(adapter, layer, keep):
        adapter.module(**source.inputs, use_cache=False)
    with input_hook(adapter, layer, put):
        logits = adapter.module(**base.inputs, use_cache=False).logits[0, -1]
    return float(logits[3] - logits[7])


def check(adapter: Adapter, kind: str | None) -> Any:
    """A whole grid; some of its cells are done by hand."""
    base, source = runs(adapter, kind)
    result = patch_sweep(adapter, base, source, site="resid_pre", metric=METRIC, positions="each")
    width = base.roles.shape[1]
    for layer in range(adapter.n_layers):
        for at in sorted({0, width // 3, width // 2, width - 4, width - 1}):
            wanted = by_hand(adapter, base, source, layer, [at], [at])
            assert float(result.raw[0, layer, at]) == pytest.approx(wanted, abs=1e-5)
    return result


@pytest.mark.parametrize(
    "name, kinds",
    [
        *[(name, ("image",)) for name in ("llava", "internvl", "gemma3")],
        *[(name, ("audio",)) for name in ("qwen2_audio", "voxtral", "gemma3n")],
        *[(name, ("video",)) for name in ("video_llava", "qwen2_5_vl", "qwen3_vl")],
        *[(name, ("audio", "image")) for name in ("gemma4", "minicpmo", "qwen2_5_omni_thinker")],
    ],
)
def test_text_goes_into_media_of_another_length(name: str, kinds: tuple[Any, ...]) -> None:
    """Of requests with several media an item of each is patched."""
    adapter = model_adapters.load(builders()[name]())
    module, family = adapter.module, adapter.family
    media = adapter.describe(**example(module, family, kinds, size=1, seed=1))
    text = adapter.describe(**example(module, family, (), size=0, seed=4))
    assert media.roles.shape[1] > text.roles.shape[1]
    result = patch_sweep(
        adapter,
        media,
        text,
        site="resid_pre",
        metric=METRIC,
        positions=[*(Pair(f"{kind}[0]", (-3, -2)) for kind in kinds), "last"],
        align="mean",
    )
    length = text.roles.shape[1]
    for number, kind in enumerate(kinds):
        into = list(getattr(media, f"{kind}s")[0][0].positions)
        for layer in range(adapter.n_layers):
            wanted = by_hand(adapter, media, text, layer, into, [length - 3, length - 2])
            assert float(result.raw[0, layer, number]) == pytest.approx(wanted, abs=1e-5)
    assert result.change.abs().amax(dim=(0, 1)).min() > 0
    with pytest.raises(ValueError, match="not name the same place in both"):
        patch_sweep(adapter, media, text, site="resid_pre", metric=METRIC, align="same")


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_are_resumed(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    for kind in (None, *adapter.media):
        result = check(adapter, kind)
        assert result.passes["whole"] == 0 and not result.notes


@pytest.mark.parametrize("name", ["gemma3", "paligemma"])
def test_images_that_see_themselves_ahead_take_no_shortcut(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    result = check(adapter, "image")
    assert result.passes["whole"] == 0
    assert "positions see later ones" in result.notes[0]


def test_gemma_3_is_causal_on_text() -> None:
    assert not check(model_adapters.load(builders()["gemma3"]()), None).notes


@pytest.mark.parametrize("kind", ["image", "video"])
def test_layers_with_features_added_between_run_whole(kind: str) -> None:
    adapter = model_adapters.load(builders()["qwen3_vl"]())
    result = check(adapter, kind)
    early = max(adapter.discontinuities) + 1
    width = len(result.axes[1].labels)
    assert 0 < result.passes["whole"] <= early * width
    assert result.passes["resumed"] > 0


def test_linear_attention_begins_at_the_first_position() -> None:
    result = check(model_adapters.load(builders()["qwen3_5"]()), "image")
    assert result.passes["whole"] == 0 and "no keys and values" in result.notes[0]


def test_several_streams_run_whole() -> None:
    adapter = model_adapters.load(builders()["gemma3n"]())
    result = check(adapter, "audio")
    assert result.passes["resumed"] == 0 and "several streams" in result.notes[0]


@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "gemma3"])
def test_paths_add_up_on_other_families(name: str) -> None:
    adapter = model_adapters.load(builders()[name]())
    base, source = runs(adapter, "image")
    width = base.roles.shape[1]
    cells: Any = dict(site="resid_post", metric=METRIC, layers=[0, adapter.n_layers - 1])
    parts = attribution_sweep(adapter, base, source, positions=range(width), steps=24, **cells)
    whole = patch_sweep(adapter, base, source, positions=[range(width)], **cells)
    torch.testing.assert_close(parts.change.sum(2), whole.change[:, :, 0], atol=5e-3, rtol=5e-2)


def test_a_hook_that_changes_layers_is_not_lost() -> None:
    """What somebody else's hook does, resumed layers do too, or passes are whole."""
    adapter = model_adapters.load(builders()["llava"]())
    layer = layers_of(adapter.module)[1]
    handle = layer.register_forward_hook(lambda _, args, output: 1.5 * output)
    try:
        check(adapter, "image")
    finally:
        handle.remove()


def test_an_installed_graph_edits_all_runs() -> None:
    adapter = model_adapters.load(builders()["llava"]())
    vector = torch.linspace(-3, 3, adapter.d_model)
    base, source = runs(adapter, "image")
    cells: Any = dict(site="attn_out", metric=METRIC, positions=["last", "image[0]"])
    bare = patch_sweep(adapter, base, source, **cells)
    layers = list(range(adapter.n_layers))
    graph = ri.Graph(ri.add("resid_post", 1, vector, strength=1.0))
    with graph.on(adapter):
        steered = patch_sweep(adapter, base, source, **cells)
    handle = layers_of(adapter.module)[1].register_forward_hook(
        lambda _, args, output: (
            (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector
        )
    )
    try:
        by_hook = patch_sweep(adapter, base, source, layers=layers, **cells)
    finally:
        handle.remove()
    assert not torch.allclose(steered.raw, bare.raw, atol=1e-3)
    torch.testing.assert_close(steered.raw, by_hook.raw, atol=1e-5, rtol=1e-5)


def test_each_head_is_refused_where_layers_have_other_numbers() -> None:
    module = builders()["qwen3_5"]()
    module.config.get_text_config().linear_num_value_heads *= 2
    adapter = model_adapters.load(type(module)(module.config).eval())
    counts = [adapter.heads(layer)[0] for layer in range(adapter.n_layers)]
    base, source = runs(adapter, None)
    cells: Any = dict(site="z", metric=METRIC)
    with pytest.raises(ValueError, match=f"have {min(counts)} to {max(counts)} heads"):
        patch_sweep(adapter, base, source, **cells, heads="each")
    alike = [layer for layer, count in enumerate(counts) if count == max(counts)]
    some = patch_sweep(adapter, base, source, **cells, layers=alike, heads="each")
    assert some.axes[2].labels == tuple(map(str, range(max(counts))))
    assert some.complete
