"""Processor classes of transformers, saved beside a tiny model and found by `load`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import model_adapters
from model_adapters import Adapter, InputError
from model_adapters.tiny import builders

TEMPLATE = (
    "{% for m in messages %}<turn> {% for part in m['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }} {% else %} PLACEHOLDER {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} w9{% endif %}"
)


def tokenizer(config: Any, *ids: str, **named: str) -> Any:
    """110 words, and special tokens behind them, whose ids are written into the config.

    Args:
        config: of the model.
        ids: attributes of the config, one for each of the first special tokens.
        named: special tokens by the tokenizer's attribute.
    """
    words = {"<unk>": 0} | {f"w{number}": number for number in range(1, 110)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={**named, "turn_token": "<turn>"},
    )
    for attribute, name in zip(ids, named.values(), strict=False):
        setattr(config, attribute, found.convert_tokens_to_ids(name))
    return found


def llava(config: Any) -> Any:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = config.vision_config.image_size
    return transformers.LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=tokenizer(config, "image_token_id", image_token="<image>"),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PLACEHOLDER", "<image>"),
    )


def gemma3(config: Any) -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    side = config.vision_config.image_size
    ids = ("image_token_id", "boi_token_index", "eoi_token_index")
    special = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    return transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(
            size={"height": side, "width": side}, do_pan_and_scan=False
        ),
        tokenizer=tokenizer(config, *ids, **special),
        image_seq_length=config.mm_tokens_per_image,
        chat_template=TEMPLATE.replace("PLACEHOLDER", "<boi>"),
    )


def idefics3(config: Any) -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    side = config.vision_config.image_size
    special = ("<image>", "<fake_token_around_image>", "<end_of_utterance>")
    named = {f"special_{number}": name for number, name in enumerate(special)}
    return transformers.Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side}
        ),
        tokenizer=tokenizer(config, "image_token_id", **named),
        image_seq_len=(side // config.vision_config.patch_size // config.scale_factor) ** 2,
        chat_template=TEMPLATE.replace("PLACEHOLDER", "<image>"),
    )


def qwen2_audio(config: Any) -> Any:
    frames = 2 * config.audio_config.max_source_positions
    return transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=config.audio_config.num_mel_bins,
            chunk_length=1,
            hop_length=16_000 // frames,
            n_fft=1024,
        ),
        tokenizer=tokenizer(
            config,
            "audio_token_id",
            audio_token="<|AUDIO|>",
            audio_bos_token="<|audio_bos|>",
            audio_eos_token="<|audio_eos|>",
        ),
        chat_template=TEMPLATE.replace("PLACEHOLDER", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )


MAKERS: dict[str, Callable[[Any], Any]] = {
    "llava": llava,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "qwen2_audio": qwen2_audio,
}
APART = (transformers.LlavaProcessor, transformers.Qwen2AudioProcessor)
"""Can keep a placeholder's name in a text apart from their own placeholders; others refuse it."""


@dataclass(frozen=True)
class Saved:
    """A model and its processor, in memory and as loaded from a folder."""

    folder: Path
    processor: Any
    adapter: Adapter
    kind: str


@pytest.fixture(scope="module", params=MAKERS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp(request.param)
    model: Any = builders()[request.param]()
    processor = MAKERS[request.param](model.config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    kind = "audio" if request.param == "qwen2_audio" else "image"
    return Saved(folder, processor, model_adapters.load(folder), kind)


def medium(saved: Saved, seed: int = 0) -> dict[str, Any]:
    """An item that the model takes."""
    rng = np.random.default_rng(seed)
    if saved.kind == "image":
        pixels = rng.integers(0, 255, (20 + seed, 30, 3)).astype(np.uint8)
        return {"type": "image", "image": pixels}
    samples = rng.standard_normal(9_000 + 1_000 * seed).clip(-3, 3) / 4
    return {"type": "audio", "audio": samples.astype(np.float32)}


def test_the_saved_processor_is_found(saved: Saved) -> None:
    assert type(saved.adapter.processor) is type(saved.processor)


def test_chats_become_what_the_processor_makes_of_them(saved: Saved, parts: Any) -> None:
    adapter, two = saved.adapter, [medium(saved), medium(saved, 1)]
    batch = adapter.encode(
        [parts.user("w5 w6"), parts.user("w5", two[0]), parts.user(*two, "w7 w8")]
    )
    held = batch.images if saved.kind == "image" else batch.audios
    assert [bool(row) for row in held] == [False, True, True]
    assert batch.modalities == ("text", saved.kind, saved.kind)
    values = model_adapters.encode.media
    read = values.picture if saved.kind == "image" else values.sound
    given = {f"{saved.kind}s" if saved.kind == "image" else "audio": [read(two[0][saved.kind], "")]}
    text = saved.processor.apply_chat_template(parts.user("w5", two[0]), add_generation_prompt=True)
    plain = saved.processor(text=[text], return_tensors="pt", **given)
    with torch.no_grad():
        expected = adapter.module(**plain).logits[0, -1]
    torch.testing.assert_close(adapter(batch).logits[1, -1], expected, atol=1e-5, rtol=1e-5)
    answers = adapter.generate(batch, max_new_tokens=2)
    assert len(answers.texts) == 3


def test_names_of_control_tokens_stay_text(saved: Saved, parts: Any) -> None:
    adapter = saved.adapter
    special = [f"<{'|AUDIO|' if saved.kind == 'audio' else 'image'}>", "<turn>", "</s>"]
    hostile = "w5 " + " ".join(special) + " w6"
    for items in ([], [medium(saved)]):
        plain = adapter.encode([parts.user("w5 w6", *items)])
        if type(saved.processor) in APART:
            typed = adapter.encode([parts.user(hostile, *items)])
            for role in ("special", saved.kind):
                assert typed.mask(role).sum() == plain.mask(role).sum()
            assert typed.mask("text").sum() > plain.mask("text").sum()
        else:
            refusal = "request 0: .*(the text (holds|contains)|out of the text)"
            with pytest.raises(InputError, match=refusal):
                adapter.encode([parts.user(hostile, *items)])


def test_a_template_that_drops_the_medium(
    saved: Saved, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(saved.adapter.processor, "chat_template", deaf)
    with pytest.raises(InputError, match="request 0"):
        saved.adapter.encode([parts.user("w5", medium(saved))])


def test_a_template_with_one_placeholder_for_two(
    saved: Saved, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "<boi>" if "Gemma" in type(saved.processor).__name__ else "<image>"
    one = ("<|AUDIO|>" if saved.kind == "audio" else name) + " w5"
    monkeypatch.setattr(saved.adapter.processor, "chat_template", one)
    with pytest.raises(InputError, match="request 0"):
        saved.adapter.encode([parts.user(medium(saved), medium(saved, 1))])


def test_a_processor_that_loses_the_medium(
    saved: Saved, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = saved.adapter.processor
    lost = "<|AUDIO|>" if saved.kind == "audio" else "<image>"

    def text_only(conversations: Any, **options: Any) -> Any:
        ids = processor.tokenizer("w5 w6", return_tensors="pt")
        assert lost not in str(ids)
        return dict(ids)

    monkeypatch.setattr(processor, "apply_chat_template", text_only)
    with pytest.raises(InputError, match=rf"holds 1 {saved.kind}\(s\), and the processor made 0"):
        saved.adapter.encode([parts.user("w5", medium(saved))])


def test_a_processor_that_needs_torchvision(saved: Saved, tmp_path: Path, parts: Any) -> None:
    saved.adapter.module.save_pretrained(tmp_path)
    name = {"processor_class": "Qwen2_5_VLProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(name))
    saved.processor.tokenizer.save_pretrained(tmp_path)
    loaded = model_adapters.load(tmp_path)
    with pytest.raises(InputError, match=r"torchvision.*trace\(\*\*encoding\)"):
        loaded.encode([parts.user("w5")])
    batch = saved.adapter.encode([parts.user("w5", medium(saved))])
    assert torch.equal(loaded(**batch.inputs).logits, saved.adapter(batch).logits)


def test_sound_at_the_rate_of_another_encoder(parts: Any) -> None:
    model: Any = builders()["qwen2_audio"]()
    processor = qwen2_audio(model.config)
    processor.feature_extractor.sampling_rate = 24_000
    adapter = model_adapters.load(model, processor=processor)
    sound = {"type": "audio", "audio": np.zeros(9_000, np.float32)}
    with pytest.raises(InputError, match="24000"):
        adapter.encode([parts.user(sound)])


def test_names_of_control_tokens_stay_text_for_a_tokenizer(parts: Any) -> None:
    model: Any = builders()["qwen2"]()
    words = tokenizer(model.config, "image_token_id", image_token="<image>")
    words.chat_template = "<turn> {% for m in messages %}{{ m['content'] }} {% endfor %}<turn>"
    adapter = model_adapters.load(model, processor=words)
    typed = adapter.encode([parts.user("w5 <turn> </s> w6")])
    plain = adapter.encode([parts.user("w5 w6")])
    assert typed.mask("special").sum() == plain.mask("special").sum() == 2
    assert typed.mask("text").sum() == 4
