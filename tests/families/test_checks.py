"""The checks of the families notice what they are there for."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analyses.families import command, verify
from analyses.families.checks import CheckError, difference
from analyses.families.checks.heads import heads_are_those_of_the_attention
from analyses.families.checks.places import frames_are_those_heard, grids_are_where_the_pixels_are
from analyses.families.checks.sites import lens_equals_logits, writes_equal_hooks
from analyses.families.prompts import Prompts
from analyses.families.verify import Verified, as_json
from model_adapters import Adapter, layout, load, parts, vocabulary
from model_adapters.families import Family
from model_adapters.families.medium import Item, Medium
from model_adapters.tiny import builders

Tiny = Callable[[str], Adapter]


def changed(adapter: Adapter, change: Callable[[Item], Item]) -> Adapter:
    """The same model, its family's items changed."""
    return load(adapter.module, family=_with_items(adapter.family, change))


def _with_items(family: Family, change: Callable[[Item], Item]) -> Family:
    def other_items(medium: Medium) -> Medium:
        form: Any = type(medium)

        def items(self: Any, inputs: Any, config: Any) -> list[Item]:
            return [change(item) for item in form.items(self, inputs, config)]

        other = dataclasses.dataclass(frozen=True, kw_only=True)(
            type("Changed", (form,), {"items": items})
        )
        values = {f.name: getattr(medium, f.name) for f in dataclasses.fields(medium)}
        made: Medium = other(**values)
        return made

    return dataclasses.replace(family, media=tuple(other_items(medium) for medium in family.media))


def _regridded(order: Callable[[int, int, int], tuple[int, int, int]]) -> Callable[[Item], Item]:
    def change(item: Item) -> Item:
        return item if item.grid is None else dataclasses.replace(item, grid=order(*item.grid))

    return change


def _reframed(change: Callable[[int, int], tuple[int, int]]) -> Callable[[Item], Item]:
    def change_frames(item: Item) -> Item:
        frames = None if item.frames is None else change(*item.frames)
        return dataclasses.replace(item, frames=frames)

    return change_frames


def outcome(check: Callable[[Adapter, Prompts], float | None], adapter: Adapter) -> float:
    """The figure of a check; infinite if it raised."""
    try:
        figure = check(adapter, Prompts(adapter))
    except CheckError:
        return math.inf
    assert figure is not None
    return figure


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_difference_of_zero(bad: float) -> None:
    good, broken = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    for pair in ((good, broken), (broken, good), (broken, broken)):
        with pytest.raises(CheckError, match="NaN or infinite"):
            difference(*pair)


def test_a_lens_of_nan_fails(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny("llama")
    monkeypatch.setattr(
        type(adapter), "unembed", lambda self, states, tokens=None: states * math.nan
    )
    assert outcome(lens_equals_logits, adapter) == math.inf


@pytest.mark.parametrize(
    "name", ["qwen2_vl", "lfm2_vl", "mistral3", "llava_next", "gemma4", "minicpmv4_6", "fast_vlm"]
)
def test_swapped_rows_and_columns_are_noticed(name: str, tiny: Tiny) -> None:
    swapped = _regridded(lambda time, rows, columns: (time, columns, rows))
    assert outcome(grids_are_where_the_pixels_are, tiny(name)) == 0
    assert outcome(grids_are_where_the_pixels_are, changed(tiny(name), swapped)) > 0


@pytest.mark.parametrize("name", ["qwen2_vl", "idefics3", "gemma3", "llava_onevision"])
def test_swapped_time_and_rows_are_noticed(name: str, tiny: Tiny) -> None:
    swapped = _regridded(lambda time, rows, columns: (rows, time, columns))
    assert outcome(grids_are_where_the_pixels_are, changed(tiny(name), swapped)) > 0


@pytest.mark.parametrize("name", ["perception_lm", "idefics3", "llava", "ovis2"])
def test_grids_of_another_shape_are_noticed(name: str, tiny: Tiny) -> None:
    flat = _regridded(lambda time, rows, columns: (time, rows * columns, 1))
    assert outcome(grids_are_where_the_pixels_are, tiny(name)) == 0
    assert outcome(grids_are_where_the_pixels_are, changed(tiny(name), flat)) > 0


def test_a_transposed_square_is_noticed(tiny: Tiny) -> None:
    adapter = tiny("llava")

    def transpose(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2)

    features = adapter.family.media[0].features
    handle = adapter.module.get_submodule(features).register_forward_hook(transpose)
    wrong = outcome(grids_are_where_the_pixels_are, adapter)
    handle.remove()
    assert wrong == pytest.approx(6 / 9)


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "minicpmo"])
@pytest.mark.parametrize(
    "change",
    [
        lambda first, end: (5, 6),
        lambda first, end: (end, first),
        lambda first, end: (first, end - 1),
        lambda first, end: (first, end + 1),
    ],
)
def test_wrong_frames_are_noticed(
    name: str, change: Callable[[int, int], tuple[int, int]], tiny: Tiny
) -> None:
    assert outcome(frames_are_those_heard, tiny(name)) == 0
    wrong = changed(tiny(name), _reframed(change))
    assert outcome(frames_are_those_heard, wrong) == math.inf


def test_an_encoder_that_hears_padding_has_to_be_known_for_it(tiny: Tiny) -> None:
    adapter = tiny("glmasr")
    assert outcome(frames_are_those_heard, adapter) == 0
    unsaid = dataclasses.replace(adapter.family, quirks=())
    assert outcome(frames_are_those_heard, load(adapter.module, family=unsaid)) == math.inf


@pytest.mark.parametrize("name", ["llama", "qwen3_5_text", "gemma2"])
def test_a_wrong_number_of_heads_is_noticed(
    name: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(heads_are_those_of_the_attention, tiny(name)) == pytest.approx(0, abs=1e-5)
    monkeypatch.setattr(layout, "_heads", lambda attn, text: 2)
    wrong = load(builders()[name]())
    assert outcome(heads_are_those_of_the_attention, wrong) == math.inf


def test_a_write_that_forgets_the_multiplier_is_noticed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(factor: float) -> parts.Part:
        return parts.Transformed(lambda value: value * factor, lambda value: value)

    assert outcome(writes_equal_hooks, tiny("granite")) == pytest.approx(0, abs=1e-4)
    monkeypatch.setattr(vocabulary, "scaled", broken)
    assert outcome(writes_equal_hooks, load(builders()["granite"]())) > 1e-2


def test_writes_without_an_effect_tell_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny("llama")
    monkeypatch.setattr("analyses.families.checks.sites.direction", lambda _: torch.zeros(32))
    with pytest.raises(CheckError, match="tell nothing"):
        writes_equal_hooks(adapter, Prompts(adapter))


def _broken() -> nn.Module:
    raise AttributeError("module 'transformers' has no attribute 'NewConfig'")


def test_a_model_that_cannot_be_built_leaves_the_table_of_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "builders", lambda: {"new": _broken, "llama": builders()["llama"]})
    assert command.main([]) == 1
    table = capsys.readouterr().out
    assert "new: build: AttributeError: module 'transformers' has no attribute" in table
    assert "1 of 2 models passed" in table
    assert command.main(["--json"]) == 1
    new, llama = json.loads(capsys.readouterr().out)
    assert (new["verified"], llama["verified"]) == (False, True)


def test_a_check_that_breaks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(adapter: Adapter, layer: int, vector: Tensor) -> Any:
        raise KeyError("layer")

    monkeypatch.setattr("analyses.families.checks.runs.steered", lost)
    row = verify("llama", builders()["llama"])
    assert row.failures == {"steered generation equals hooked": "KeyError: 'layer'"}
    assert not row.verified


def test_json_has_no_nan() -> None:
    row = Verified(
        name="a",
        family="A",
        model_type="a",
        model_class="A",
        media=(),
        quirks=(),
        unverified={},
        checks={"one": math.nan, "two": 0.0, "three": math.inf},
        failures={"one": "NaN"},
        seconds=0.0,
    )
    (plain_row,) = json.loads(as_json([row]))
    assert plain_row["checks"] == {"one": None, "two": 0.0, "three": None}
