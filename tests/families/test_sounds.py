"""Positions of sounds, released models, and inputs that a model would get wrong silently."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model_adapters import Adapter, InputError, load
from model_adapters.families import Medium, family_of
from model_adapters.probe import example
from model_adapters.tiny import builders

Encoding = dict[str, Any]


def tiny(name: str) -> Adapter:
    return load(builders()[name]())


def encoding(adapter: Adapter, *kinds: str, size: int = 0, seed: int = 0) -> Encoding:
    return example(adapter.module, adapter.family, kinds, size=size, seed=seed)


def audio(adapter: Adapter) -> Medium:
    return next(one for one in adapter.family.media if one.kind == "audio")


@torch.no_grad()
def last_logits(adapter: Adapter, inputs: Encoding) -> Tensor:
    logits: Tensor = adapter.module(**inputs).logits[:, -1]
    return logits


@pytest.mark.parametrize(
    ("config", "heard", "positions"),
    [
        ("Qwen2AudioConfig", [3000, 1234], [750, 308]),
        ("VoxtralConfig", [3000], [375]),
        ("AudioFlamingo3Config", [3000, 1001], [750, 250]),
        ("GlmAsrConfig", [3000, 1000], [375, 125]),
        ("Qwen3ASRConfig", [3000, 137, 100, 9], [390, 18, 13, 2]),
        ("FunAsrNanoConfig", [77], [77]),
        ("MossTranscribeDiarizeConfig", [3000, 1001], [375, 126]),
        ("Gemma4Config", [3000, 101], [750, 26]),
        ("Gemma3nConfig", [3000, 101], [188, 188]),
    ],
)
def test_positions_of_released_models(config: str, heard: list[int], positions: list[int]) -> None:
    released = getattr(transformers, config)()
    if released.model_type == "gemma4":
        released.audio_config = transformers.Gemma4AudioConfig()
    medium: Any = next(one for one in family_of(released).media if one.kind == "audio")
    assert medium.positions(released, torch.tensor(heard)).tolist() == positions


def test_granite_gives_three_positions_for_fifteen_frames() -> None:
    released = transformers.GraniteSpeechConfig()
    (medium,) = family_of(released).media
    made = medium.example(released, torch.Generator().manual_seed(0), 1)
    # Of 23 frames, filled up to two windows.
    assert [item.positions for item in medium.items(made, released)] == [6, 6]


def test_granites_logits_are_not_scaled_though_its_config_says_so() -> None:
    adapter = tiny("granite_speech")
    assert adapter.module.config.text_config.logits_scaling == 2
    batch = adapter.describe(**encoding(adapter, "audio"))
    seen: list[Tensor] = []
    with adapter.trace(batch):
        seen.append(adapter.get(adapter.layout.head).output.clone())
        seen.append(adapter.logits.clone())
    assert torch.equal(*seen)


def test_a_mask_with_a_hole_is_refused() -> None:
    adapter = tiny("qwen2_audio")
    inputs = encoding(adapter, "audio")
    mask = inputs["feature_attention_mask"]
    mask[0, 3] = 0
    with pytest.raises(InputError, match="ones first and zeros after"):
        adapter.describe(**inputs)


def test_a_mask_of_numbers_is_refused_where_truth_values_are_needed() -> None:
    adapter = tiny("gemma4")
    inputs = encoding(adapter, "audio")
    inputs["input_features_mask"] = inputs["input_features_mask"].long()
    with pytest.raises(InputError, match=r"must be torch\.bool"):
        adapter.describe(**inputs)


@pytest.mark.parametrize("name", ["voxtral", "qwen3_asr"])
def test_sounds_that_are_not_filled_up_are_refused(name: str) -> None:
    adapter = tiny(name)
    inputs = encoding(adapter, "audio")
    for part in audio(adapter).joins():
        inputs[part] = inputs[part][..., :-1]
    with pytest.raises(InputError, match="filled up to"):
        adapter.describe(**inputs)


def test_features_with_other_bins_are_refused() -> None:
    adapter = tiny("audioflamingo3")
    inputs = encoding(adapter, "audio")
    inputs["input_features"] = inputs["input_features"].transpose(1, 2)
    with pytest.raises(InputError, match="8 bins"):
        adapter.describe(**inputs)


def test_where_the_encoder_hears_padding_a_batch_has_sounds_of_one_length() -> None:
    adapter = tiny("glmasr")
    short, long = encoding(adapter, "audio", size=1), encoding(adapter, "audio")
    alone = last_logits(adapter, short)
    padded = dict(short)
    for part in audio(adapter).joins():
        padded[part] = torch.nn.functional.pad(short[part], (0, 8))
    # This is what such a batch would do to the shorter sound.
    assert (last_logits(adapter, padded) - alone).abs().max() > 1e-2
    with pytest.raises(InputError, match="must be of one size"):
        adapter.join([padded, long])


def test_music_flamingos_sounds_are_told_apart_by_their_ends() -> None:
    adapter = tiny("musicflamingo")
    first, second = (encoding(adapter, "audio", seed=seed) for seed in (1, 2))
    both = {
        "input_ids": torch.cat([first["input_ids"], second["input_ids"]], dim=1),
        "attention_mask": torch.cat([first["attention_mask"], second["attention_mask"]], dim=1),
    }
    for part in audio(adapter).joins():
        both[part] = torch.cat([first[part], second[part]])
    entering: dict[str, Tensor] = {}
    for name, inputs in {"first": first, "second": second, "both": both}.items():
        handle = adapter.hook("embed", None, lambda value, n=name: entering.update({n: value}))  # type: ignore[misc]
        last_logits(adapter, inputs)
        handle.remove()
    apart = torch.cat([entering["first"], entering["second"]], dim=1)
    torch.testing.assert_close(entering["both"], apart)


class TestPhi4:
    """Its encoders see padding, and sounds beside pictures are projected in another way."""

    def test_sounds_alone_are_not_put_beside_pictures(self) -> None:
        adapter = tiny("phi4_multimodal")
        seen, heard = encoding(adapter, "image"), encoding(adapter, "audio")
        with pytest.raises(InputError, match="audio alone"):
            adapter.join([seen, heard])
        with pytest.raises(InputError, match="audio alone"), adapter.trace() as tracer:
            with tracer.invoke(**seen):
                pass
            with tracer.invoke(**heard):
                pass

    def test_sounds_with_pictures_in_one_request_are_as_they_are_alone(self) -> None:
        adapter = tiny("phi4_multimodal")
        requests = [encoding(adapter, "image", "audio", seed=seed) for seed in (1, 2)]
        text = encoding(adapter)
        together = last_logits(adapter, adapter.join([*requests, text]).inputs)
        alone = torch.cat([last_logits(adapter, one) for one in (*requests, text)])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)

    def test_pictures_with_padding_are_not_put_beside_pictures_without(self) -> None:
        adapter = tiny("phi4_multimodal")
        whole, padded = encoding(adapter, "image", seed=1), encoding(adapter, "image", seed=2)
        padded["image_attention_mask"][:, 2, :, 2:] = 0
        # Two of four columns of the right crop: a column of positions for each of two rows less.
        ids = padded["input_ids"][0].tolist()
        for _ in range(2):
            ids.remove(adapter.module.config.vision_config.image_token_id)
        padded["input_ids"] = torch.tensor([ids])
        padded["attention_mask"] = torch.ones_like(padded["input_ids"])
        adapter.describe(**padded)
        assert last_logits(adapter, padded).isfinite().all()
        with pytest.raises(InputError, match="marks padding in some"):
            adapter.join([whole, padded])

    def test_requests_may_lack_the_mask_of_frames(self) -> None:
        adapter = tiny("phi4_multimodal")
        first, second = (encoding(adapter, "audio", seed=seed) for seed in (1, 2))
        alone = torch.cat([last_logits(adapter, first), last_logits(adapter, second)])
        del first["audio_attention_mask"]
        together = last_logits(adapter, adapter.join([first, second]).inputs)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
