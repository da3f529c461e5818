"""Ready encodings are checked before the forward pass."""

from typing import Any

import pytest
import torch

from model_adapters import Adapter, InputError, SiteError

IMAGE = 100


@pytest.fixture
def encoding(adapter: Adapter, parts: Any) -> dict[str, Any]:
    """One image and one audio."""
    return dict(adapter.encode([parts.user("w5", parts.picture(), parts.sound())]).inputs)


def refused(adapter: Adapter, encoding: dict[str, Any], message: str) -> None:
    """`trace`, `generate`, `describe` and a plain call all refuse, before anything runs."""
    ran: list[object] = []
    handle = adapter.module.register_forward_pre_hook(lambda *_: ran.append(1))
    for attempt in (
        adapter.trace,
        adapter.describe,
        adapter,
        lambda **inputs: adapter.generate(**inputs, max_new_tokens=1),
    ):
        with pytest.raises(InputError, match=message):
            attempt(**encoding)
    handle.remove()
    assert not ran


def test_a_misspelt_name(adapter: Adapter, encoding: dict[str, Any]) -> None:
    encoding["pixel_value"] = encoding.pop("pixel_values")
    refused(adapter, encoding, "takes no 'pixel_value'; did you mean 'pixel_values'")


def test_fewer_placeholders_than_the_tower_emits(adapter: Adapter, encoding: Any) -> None:
    first = (encoding["input_ids"] == IMAGE).nonzero()[0]
    encoding["input_ids"] = encoding["input_ids"].clone()
    encoding["input_ids"][tuple(first)] = 5
    refused(adapter, encoding, "image tower will emit 6 tokens .* input_ids has 5 image")


def test_an_image_lost_on_the_way(adapter: Adapter, encoding: dict[str, Any]) -> None:
    del encoding["pixel_values"], encoding["image_grid_thw"]
    refused(adapter, encoding, "6 image placeholders .* there is no pixel_values")


def test_an_image_without_its_grid(adapter: Adapter, encoding: dict[str, Any]) -> None:
    del encoding["image_grid_thw"]
    refused(adapter, encoding, "pixel_values was given without image_grid_thw")


def test_a_grid_of_another_image(adapter: Adapter, encoding: dict[str, Any]) -> None:
    encoding["pixel_values"] = encoding["pixel_values"][:-1]
    refused(adapter, encoding, "describes 24 patches, pixel_values holds 23")


def test_a_mask_of_another_audio(adapter: Adapter, encoding: dict[str, Any]) -> None:
    encoding["feature_attention_mask"] = encoding["feature_attention_mask"][:, :-1]
    refused(adapter, encoding, "input_features has shape")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_media_that_are_not_finite(adapter: Adapter, encoding: Any, value: float) -> None:
    encoding["input_features"] = encoding["input_features"].clone()
    encoding["input_features"][0, 0, 0] = value
    refused(adapter, encoding, "input_features holds NaN or infinite values")


def test_media_need_an_attention_mask(adapter: Adapter, encoding: dict[str, Any]) -> None:
    del encoding["attention_mask"]
    refused(adapter, encoding, "attention_mask is missing")


def test_a_mask_that_hides_an_image(adapter: Adapter, encoding: dict[str, Any]) -> None:
    encoding["attention_mask"] = (encoding["input_ids"] != IMAGE).long()
    refused(adapter, encoding, "attention_mask hides image placeholders")


def test_a_mask_of_another_shape(adapter: Adapter, encoding: dict[str, Any]) -> None:
    encoding["attention_mask"] = encoding["attention_mask"][:, 1:]
    refused(adapter, encoding, "attention_mask has shape")


def test_a_row_of_padding_only(adapter: Adapter) -> None:
    ids = torch.tensor([[5, 6], [7, 8]])
    mask = torch.tensor([[1, 1], [0, 0]])
    refused(adapter, {"input_ids": ids, "attention_mask": mask}, r"rows \[1\] .* all zero")


def test_tokens_of_another_model(adapter: Adapter) -> None:
    refused(adapter, {"input_ids": torch.tensor([[5, 4000]])}, "has token 4000, .* 0 to 119")
    refused(adapter, {"input_ids": torch.tensor([[5, -1]])}, "has token -1")


@pytest.mark.parametrize("ids", [torch.zeros(0, 4), torch.tensor([1, 2]), torch.ones(1, 2)])
def test_ids_that_are_no_rows_of_tokens(adapter: Adapter, ids: torch.Tensor) -> None:
    refused(adapter, {"input_ids": ids}, r"integers of shape \[batch, position\]")


def test_requests_must_be_encoded_first(adapter: Adapter, parts: Any) -> None:
    with pytest.raises(InputError, match=r"give one Batch, .* got list"):
        adapter.trace([parts.user("w5")])


def test_a_trace_without_requests(adapter: Adapter) -> None:
    with pytest.raises(SiteError, match="only inside a trace"), adapter.trace():
        adapter.resid_post[0].save()
    with pytest.raises(ValueError, match="needs an input"), adapter.trace():
        print("never run with a model")


def test_generate_without_requests(adapter: Adapter) -> None:
    with pytest.raises(InputError, match="generate needs a Batch"):
        adapter.generate(max_new_tokens=1)


def test_requests_given_twice(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5")])
    message = r"open one without any, `with adapter\.trace\(\)"
    with pytest.raises(SiteError, match=message), adapter.trace(batch) as tracer:
        with tracer.invoke(batch):
            adapter.resid_post[0].save()
        _ = tracer


def test_an_invoke_anywhere_but_directly_in_its_trace(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5")])
    message = "stands by itself, directly in the block"
    with (
        pytest.raises(SiteError, match=message),
        adapter.trace() as tracer,
        tracer.invoke(batch),
    ):
        adapter.resid_post[0].save()
    with pytest.raises(SiteError, match=message), adapter.trace() as tracer:
        with tracer.invoke(batch):
            with tracer.invoke(batch):
                adapter.resid_post[0].save()
            _ = tracer
        _ = tracer


@pytest.mark.parametrize("name", ["attention_mask", "image_grid_thw", "feature_attention_mask"])
def test_lists_where_tensors_belong(adapter: Adapter, encoding: Any, name: str) -> None:
    encoding[name] = encoding[name].tolist()
    refused(adapter, encoding, f"{name} is a list; it must be a tensor")
