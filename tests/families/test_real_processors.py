"""Chats through the families' own processors: what they lay out is what the entries expect."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from model_adapters import Adapter, load
from model_adapters.tiny import builders

# PaliGemma's processor converts tensors in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_NAMED = ("<pad>", "<s>", "</s>", "<unk>", "hello", "world", "user", "assistant", ":")
_TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for p in m.content %}"
    "{% if p.type == 'image' %} IMAGE {% else %} {{ p.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)


def tokenizer(**named: str) -> Any:
    """Words of their own, then the named special tokens from 100 on, as the tiny models know it."""
    words = [*_NAMED, *(f"w{i}" for i in range(len(_NAMED), 100))]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named or {"image_token": "<image>"},
        padding_side="left",
    )


def squares(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def exactly(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def clip_options() -> dict[str, Any]:
    return {
        "tokenizer": tokenizer(),
        "patch_size": 4,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }


def llava() -> Any:
    images = transformers.CLIPImageProcessorPil(**squares(12))
    return transformers.LlavaProcessor(image_processor=images, **clip_options())


def llava_next() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        **squares(12), image_grid_pinpoints=[[12, 24], [24, 12], [24, 24], [36, 12], [12, 36]]
    )
    return transformers.LlavaNextProcessor(image_processor=images, **clip_options())


def gemma3() -> Any:
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessorPil(**exactly(16)),
        tokenizer=tokenizer(image_token="<image>", eoi_token="<eoi>", boi_token="<boi>"),
        image_seq_length=4,
    )


def paligemma() -> Any:
    return transformers.PaliGemmaProcessor(
        image_processor=transformers.SiglipImageProcessorPil(**exactly(12), image_seq_length=9),
        tokenizer=tokenizer(),
    )


def idefics3() -> Any:
    return transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
        ),
        tokenizer=tokenizer(),
        image_seq_len=4,
    )


def idefics2() -> Any:
    return transformers.Idefics2Processor(
        image_processor=transformers.Idefics2ImageProcessorPil(
            size={"shortest_edge": 8, "longest_edge": 24}
        ),
        tokenizer=tokenizer(image_token="<image>", image_boundary_token="<fake>"),
        image_seq_len=5,
    )


PROCESSORS: dict[str, tuple[Callable[[], Any], str, list[list[int]]]] = {
    # Name: processor, token of an image in a prompt, lengths of the spans of a low and a high one.
    "llava": (llava, "<image>", [[9], [9]]),
    "llava_next": (llava_next, "<image>", [[9, 4 * 7], [9, 9 * 4]]),
    "gemma3": (gemma3, "<boi>", [[4], [4]]),
    "paligemma": (paligemma, "<image>", [[9], [9]]),
    "idefics3": (idefics3, "<image>", [[4] * 5, [4] * 3]),
    "idefics2": (idefics2, "<image>", [[5], [5]]),
}


@pytest.fixture(scope="module", params=PROCESSORS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def adapter(name: str) -> Adapter:
    make, image, _ = PROCESSORS[name]
    processor = make()
    processor.chat_template = _TEMPLATE.replace("IMAGE", image)
    return load(builders()[name](), processor=processor)


def picture(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def chat(*pictures: Image.Image) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": one} for one in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "hello world"}]}]


def test_spans_are_where_the_processor_put_placeholders(name: str, adapter: Adapter) -> None:
    expected = PROCESSORS[name][2]
    wide, high = picture(20, 30), picture(30, 10)
    batch = adapter.encode([chat(wide), chat(high), chat(high, wide)])
    lengths = [[len(span) for span in row] for row in batch.images]
    assert lengths == [expected[0], expected[1], expected[1] + expected[0]]
    token = batch.inputs["input_ids"]
    image = adapter.family.media[0].placeholder(adapter.module.config)
    for row, spans in enumerate(batch.images):
        assert all(token[row, at] == image for span in spans for at in span.positions)


def test_a_batch_answers_as_its_requests_alone(adapter: Adapter) -> None:
    chats = [chat(picture(20, 30)), chat(picture(30, 10)), chat(picture(30, 10), picture(20, 30))]
    with torch.no_grad():
        together = adapter.module(**adapter.encode(chats).inputs).logits[:, -1]
        for row, one in enumerate(chats):
            alone = adapter.module(**adapter.encode([one]).inputs).logits[0, -1]
            assert torch.allclose(together[row], alone, atol=1e-5)
