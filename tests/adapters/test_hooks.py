"""Plain hooks against the sites of traces."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, Batch, LayerError, SiteError

LAYER_SITES = ("resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")
PLACES: list[tuple[str, int | None]] = [
    *((site, 1) for site in LAYER_SITES),
    ("embed", None),
    ("final_norm", None),
    ("logits", None),
]


def place_id(value: object) -> str:
    return str(value)


@contextmanager
def hooked(adapter: Adapter, site: str, layer: int | None, fn: Any) -> Iterator[None]:
    handle = adapter.hook(site, layer, fn)
    try:
        yield
    finally:
        handle.remove()


def logits_of(adapter: Adapter, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits: Tensor = adapter.module(**batch.inputs).logits
        return logits


def read(adapter: Adapter, site: str, layer: int | None) -> Tensor:
    value: Tensor = getattr(adapter, site) if layer is None else getattr(adapter, site)[layer]
    return value


def write(adapter: Adapter, site: str, layer: int | None, value: Tensor) -> None:
    if layer is None:
        setattr(adapter, site, value)
    else:
        getattr(adapter, site)[layer] = value


def some_change(value: Tensor) -> Tensor:
    """Another value for every entry, and for every position another one."""
    ramp = torch.linspace(-1, 1, value.shape[-1])
    steps = torch.arange(value.shape[1]).reshape(1, -1, *[1] * (value.ndim - 2))
    return 0.5 * value + ramp * (1 + steps)


@pytest.fixture(params=["thinker", "text"])
def model_and_batch(
    request: pytest.FixtureRequest, requests_of_every_kind: Any
) -> tuple[Adapter, Batch]:
    if request.param == "thinker":
        adapter: Adapter = request.getfixturevalue("adapter")
        return adapter, adapter.encode(requests_of_every_kind)
    adapter = request.getfixturevalue("text_adapter")
    ids = torch.tensor([[0, 5, 6, 7], [3, 4, 8, 9]])
    return adapter, adapter.describe(input_ids=ids, attention_mask=(ids != 0).long())


@pytest.mark.parametrize(("site", "layer"), PLACES, ids=place_id)
def test_a_hook_sees_what_a_trace_sees(
    model_and_batch: tuple[Adapter, Batch], site: str, layer: int | None
) -> None:
    adapter, batch = model_and_batch
    seen: list[Tensor] = []
    before = logits_of(adapter, batch)
    with hooked(adapter, site, layer, seen.append):
        logits = logits_of(adapter, batch)
    with adapter.trace(batch):
        expected = read(adapter, site, layer).clone().save()
    assert torch.equal(seen[0], expected)
    assert len(seen) == 1
    assert torch.equal(logits, before), "a mere read changes no bit"


@pytest.mark.parametrize(("site", "layer"), PLACES, ids=place_id)
def test_a_replacement_equals_that_of_a_trace(
    model_and_batch: tuple[Adapter, Batch], site: str, layer: int | None
) -> None:
    adapter, batch = model_and_batch
    before = logits_of(adapter, batch)
    with hooked(adapter, site, layer, some_change):
        logits = logits_of(adapter, batch)
    with adapter.trace(batch):
        write(adapter, site, layer, some_change(read(adapter, site, layer)))
        expected = adapter.logits.save()
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, before)
    assert torch.equal(logits_of(adapter, batch), before), "removed, and nothing is left"


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize(("site", "layer"), PLACES, ids=place_id)
def test_a_change_in_place_arrives(
    adapter: Adapter, parts: Any, site: str, layer: int | None, inference: bool
) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])

    def in_place(value: Tensor) -> None:
        value.copy_(some_change(value))

    with hooked(adapter, site, layer, some_change):
        expected = logits_of(adapter, batch)
    with hooked(adapter, site, layer, in_place), torch.inference_mode(inference):
        logits = logits_of(adapter, batch)
    assert torch.equal(logits, expected)


def test_reading_result_in_inference_mode_changes_no_bit(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    before = logits_of(adapter, batch)
    seen: list[Tensor] = []
    with hooked(adapter, "result", 1, seen.append), torch.inference_mode():
        assert torch.equal(logits_of(adapter, batch), before)
    assert seen


@pytest.mark.parametrize(("site", "layer"), PLACES, ids=place_id)
def test_hooks_at_one_site_run_in_the_order_they_came(
    adapter: Adapter, parts: Any, site: str, layer: int | None
) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    seen: list[Tensor] = []

    def both(value: Tensor) -> Tensor:
        return 2 * (value + 1)

    with hooked(adapter, site, layer, both):
        expected = logits_of(adapter, batch)
    with (
        hooked(adapter, site, layer, lambda value: value + 1),
        hooked(adapter, site, layer, seen.append),
        hooked(adapter, site, layer, lambda value: 2 * value),
        hooked(adapter, site, layer, seen.append),
    ):
        assert torch.equal(logits_of(adapter, batch), expected)
    torch.testing.assert_close(seen[1], 2 * seen[0])


def test_what_a_hook_kept_stays_as_it_was(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    for site in LAYER_SITES:
        seen: list[Tensor] = []
        with hooked(adapter, site, 1, seen.append):
            logits_of(adapter, batch)
        before = seen.pop().clone()
        with hooked(adapter, site, 1, seen.append), hooked(adapter, site, 1, some_change):
            logits_of(adapter, batch)
        assert torch.equal(seen[0], before), site


def test_removing_one_of_several_leaves_the_others(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    for site in ("result", "resid_post"):
        with hooked(adapter, site, 1, some_change):
            expected = logits_of(adapter, batch)
            with hooked(adapter, site, 1, lambda value: 3 * value):
                assert not torch.equal(logits_of(adapter, batch), expected)
            assert torch.equal(logits_of(adapter, batch), expected)


def test_removing_twice_does_nothing(adapter: Adapter) -> None:
    first = adapter.hook("result", 0, lambda value: None)
    second = adapter.hook("result", 0, lambda value: None)
    for handle in (first, first, second, second):
        handle.remove()
    assert not adapter.get(adapter.layout.layers)[0].self_attn.o_proj._module._forward_hooks


def test_hooks_fire_in_every_pass_of_a_generation(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7"), parts.user(parts.picture())])
    widths: list[int] = []
    with hooked(adapter, "resid_post", 2, lambda value: widths.append(value.shape[1])):
        adapter.module.generate(**batch.inputs, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
    assert widths == [batch.roles.shape[1], 1, 1]


def test_a_hook_runs_beside_a_trace(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with adapter.trace(batch):
        adapter.resid_pre[2] = some_change(adapter.resid_pre[2])
        expected = adapter.logits.save()
    with hooked(adapter, "resid_post", 1, some_change), adapter.trace(batch):
        seen = adapter.resid_pre[2].clone().save()
        logits = adapter.logits.save()
    assert torch.equal(logits, expected)
    with adapter.trace(batch):
        own = adapter.resid_pre[2].clone().save()
    assert torch.equal(seen, some_change(own))


def test_a_trace_and_a_hook_that_both_change_results_are_refused(
    adapter: Adapter, parts: Any
) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with hooked(adapter, "result", 1, some_change):
        with adapter.trace(batch):
            adapter.result[2] = some_change(adapter.result[2])
            adapter.logits.save()
        with (
            pytest.raises(SiteError, match=r"result\[1\]: a trace changed z"),
            adapter.trace(batch),
        ):
            adapter.z[1] = 2 * adapter.z[1]
            adapter.logits.save()


def test_a_replacement_is_cast_to_the_models_type(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    before = logits_of(adapter, batch)
    for site, layer in PLACES:
        if site != "result":
            with hooked(adapter, site, layer, lambda value: value.double()):
                assert torch.equal(logits_of(adapter, batch), before)


@pytest.mark.parametrize(("site", "layer"), PLACES, ids=place_id)
def test_a_replacement_that_does_not_fit(
    adapter: Adapter, parts: Any, site: str, layer: int | None
) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    with (
        hooked(adapter, site, layer, lambda value: value[:, :1]),
        pytest.raises(SiteError, match=rf"{site}.*: the replacement has shape \(1, 1, "),
    ):
        logits_of(adapter, batch)


@pytest.mark.parametrize(
    ("site", "layer", "error", "message"),
    [
        ("resid_pots", 1, SiteError, "no site 'resid_pots'; did you mean 'resid_post'"),
        ("q", 1, SiteError, "no site 'q'; the sites are"),
        ("resid_post", None, LayerError, "resid_post needs a layer, 0 to 3"),
        ("resid_post", 4, LayerError, "the model has 4 layers, 0 to 3"),
        ("logits", 3, SiteError, "logits belongs to the whole model"),
    ],
)
def test_a_place_that_is_not_there(
    adapter: Adapter, site: str, layer: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        adapter.hook(site, layer, lambda value: None)


def test_layers_may_be_counted_from_the_last(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5 w6 w7")])
    seen: list[Tensor] = []
    with (
        hooked(adapter, "resid_post", -1, seen.append),
        hooked(adapter, "resid_post", 3, seen.append),
    ):
        logits_of(adapter, batch)
    assert torch.equal(seen[0], seen[1])
