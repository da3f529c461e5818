"""From a row of a batch to views: its tokens, and its media as the model is given them."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model_adapters import Adapter, load
from model_adapters.batch import AudioSpan, Batch
from model_adapters.encode import Chat
from model_adapters.errors import InputError
from model_adapters.organism.world import draw_samples
from model_adapters.tiny import builders
from regap_interp.views import About, Prompt
from regap_interp.views.kept import _picture, _shown, spectrogram
from tests.families.test_real_processors import _TEMPLATE, PROCESSORS
from tests.views.samples import NAN, Page

KINDS = ("image", "audio", "video", "omni")


def asked(setting: Any, n: int = 2) -> list[Chat]:
    """Requests of the organism's world, with media in a part of them."""
    found = draw_samples("report", setting, 8, seed=5)
    return [one.messages for one in found if one.setting == setting][:n]


def given(chat: Chat, kind: str) -> list[Any]:
    """The media of a kind that a request holds."""
    parts = [p for m in chat for p in m["content"] if not isinstance(m["content"], str)]
    return [part[kind] for part in parts if part["type"] == kind]


def levels(picture: Any) -> Tensor:
    """A picture as numbers."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32))


def numbered(batch: Batch) -> Tensor:
    """A value for every position: its own number."""
    return torch.arange(batch.roles.shape[1]).double()


@pytest.fixture(scope="module")
def mixed(random_organism: Adapter) -> tuple[list[Chat], Batch]:
    """A text, and two requests of each kind, padded to one length."""
    chats = [chat for kind in KINDS for chat in asked(kind)]
    text: Chat = [{"role": "user", "content": "kime lena"}]
    chats = [text, *chats]
    return chats, random_organism.encode(chats)


def test_every_row_shows_its_own_media(
    random_organism: Adapter, mixed: tuple[list[Chat], Batch]
) -> None:
    chats, batch = mixed
    kinds = set()
    for row, chat in enumerate(chats):
        prompt = Prompt.of(random_organism, batch, row)
        assert [span for span, _ in prompt.media] == list(prompt.spans)
        for kind in ("image", "video"):
            shown = [content for span, content in prompt.media if _kind(span) == kind]
            for picture, own in zip(shown, given(chat, kind), strict=True):
                frames: Sequence[Any] = picture if kind == "video" else [picture]
                wanted = own if kind == "video" else [own]
                for one, want in zip(frames, wanted, strict=True):
                    assert (levels(one) - levels(want)).abs().max() <= 1
                kinds.add(kind)
        sounds = [content for span, content in prompt.media if _kind(span) == "audio"]
        before = sum(len(spans) for spans in batch.audios[:row])
        for number, sound in enumerate(sounds, start=before):
            assert sound.equal(batch.inputs["input_features"][number])
            kinds.add("audio")
    assert kinds == {"image", "video", "audio"}


def test_tokens_are_those_of_the_row_without_padding(
    random_organism: Adapter, mixed: tuple[list[Chat], Batch]
) -> None:
    _, batch = mixed
    prompt = Prompt.of(random_organism, batch, 0)

    ids = batch.inputs["input_ids"][0]
    assert prompt.first == int((batch.roles[0] == 0).sum()) > 0
    assert len(prompt.tokens) == len(ids) - prompt.first
    assert {"kime", "lena", "<|im_start|>"} <= {token.strip() for token in prompt.tokens}
    right = random_organism.encode(mixed[0], padding_side="right")
    assert Prompt.of(random_organism, right, 0).tokens == prompt.tokens
    assert Prompt.of(random_organism, right, 0).first == 0
    assert Prompt.of(random_organism, batch, -1).spans == Prompt.of(random_organism, batch, 8).spans


@pytest.mark.parametrize("row", range(1, 9), ids=lambda row: KINDS[(row - 1) // 2])
def test_a_strip_has_every_value_at_its_place(
    random_organism: Adapter, mixed: tuple[list[Chat], Batch], row: int
) -> None:
    chats, batch = mixed
    prompt = Prompt.of(random_organism, batch, row)
    strip = prompt.strip(numbered(batch), quantity="place", about=About(n=1))

    page = Page(strip.html())
    hovers = [a["title"] or "" for tag, a in page.elements if tag == "i"]
    shown = sorted(float(hover.split(": ")[1]) for hover in hovers)
    assert shown == sorted(place for span in prompt.spans for place in span.positions)
    frame = strip.to_frame()
    assert frame["position"].tolist() == frame["value"].tolist()
    assert strip.caption.startswith(f"model {random_organism.model_id} \u00b7 n = 1")
    assert len(strip.html()) < 300_000
    own = Prompt.of(random_organism, batch, row, chat=chats[row])
    assert [span for span, _ in own.media] == list(prompt.spans)
    assert Page(own.strip(numbered(batch)).html()).text.count("positions") == len(prompt.spans)


def test_a_map_has_a_column_for_each_medium(
    random_organism: Adapter, mixed: tuple[list[Chat], Batch]
) -> None:
    _, batch = mixed
    prompt = Prompt.of(random_organism, batch, 1)
    (span,) = prompt.spans
    values = torch.zeros(2, batch.roles.shape[1])
    values[0, span.start + 2], values[0, span.start], values[1, span.stop - 1] = -5.0, 2.0, NAN
    values[1, span.stop] = 7.0

    view = prompt.heatmap(values, ["first", "second"], row_axis="run")

    at = span.start - prompt.first
    assert len(view.columns) == len(prompt.tokens) - len(span) + 1
    assert view.columns[at] == f"image[{span.grid[1]}\u00d7{span.grid[2]}]"  # type: ignore[index]
    assert view.values[0].tolist() == [-5.0 if i == at else 0.0 for i in range(len(view.columns))]
    assert view.values[1, at].isnan()
    assert view.values[1, at + 1] == 7
    assert "of a medium, the value furthest from 0" in view.caption
    assert view.row_axis == "run"


def test_pictures_of_one_item_each_are_turned_back() -> None:
    make, image, _ = PROCESSORS["llava"]
    processor = make()
    processor.chat_template = _TEMPLATE.replace("IMAGE", image)
    adapter = load(builders()["llava"](), processor=processor)
    plain = [Image.new("RGB", (12, 12), colour) for colour in ((250, 10, 40), (0, 120, 30))]
    chats: list[Chat] = [
        [{"role": "user", "content": [{"type": "image", "image": one}]}] for one in plain
    ]
    batch = adapter.encode(chats)

    for row, picture in enumerate(plain):
        ((_, shown),) = Prompt.of(adapter, batch, row).media
        assert (levels(shown) - levels(picture)).abs().max() <= 1
    raw = load(builders()["llava"](), processor=None)
    ((span, dark),) = Prompt.of(raw, batch, 0).media  # no processor: stretched
    assert (dark.size, span) == ((12, 12), batch.images[0][0])
    assert Prompt.of(raw, batch).tokens[0].startswith("#")


def test_what_is_cut_into_tiles_is_shown_as_placeholders() -> None:
    make, image, _ = PROCESSORS["idefics3"]
    processor = make()
    processor.chat_template = _TEMPLATE.replace("IMAGE", image)
    adapter = load(builders()["idefics3"](), processor=processor)
    picture = Image.new("RGB", (32, 32))
    chat: Chat = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    batch = adapter.encode([chat])

    prompt = Prompt.of(adapter, batch)
    assert prompt.media == ()
    assert len(prompt.spans) > 1
    assert "<img" not in prompt.strip(numbered(batch)).html()
    columns = prompt.heatmap(numbered(batch)[None], [0]).columns
    assert sum("image" in str(name) for name in columns) >= len(prompt.spans)
    with pytest.raises(InputError, match=r"holds 1 image\(s\), row 0 of the batch"):
        Prompt.of(adapter, batch, chat=chat)


def test_what_does_not_belong_together_is_refused(
    random_organism: Adapter, mixed: tuple[list[Chat], Batch], as_users_run_it: None
) -> None:
    chats, batch = mixed
    width = batch.roles.shape[1]
    prompt = Prompt.of(random_organism, batch, 0)
    with pytest.raises(ValueError, match=f"values for 3 positions, and the batch has {width}"):
        prompt.strip(torch.zeros(3))
    with pytest.raises(IndexError, match="row 9 of a batch of 9 rows"):
        Prompt.of(random_organism, batch, 9)
    with pytest.raises(InputError, match=r"holds 0 image\(s\), row 1 of the batch 1"):
        Prompt.of(random_organism, batch, 1, chat=chats[0])


def test_a_spectrogram_has_a_column_each_ten_milliseconds() -> None:
    time = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * time) * (time > 0.5)

    shown = spectrogram(tone)

    assert shown.shape == (201, 101)
    assert int(shown[:, 80].argmax()) == 1000 // 40
    assert shown[:, 80].max() - shown[:, 20].max() > 4
    assert spectrogram(np.zeros(10)).shape[1] >= 1


def _kind(span: Any) -> str:
    return "audio" if isinstance(span, AudioSpan) else type(span).__name__.lower()[:-4]


def test_frames_of_other_lengths_cover_the_whole_sound() -> None:
    time = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * time) * (time > 0.75)
    heard = _shown(tone, AudioSpan(0, 4, (0, 50)), even=False)

    assert heard.shape == (201, 50)
    assert heard[25, 45] - heard[25, 30] > 4
    assert _shown(tone, AudioSpan(0, 4, (0, 100)), even=True).shape == (201, 101)


def test_captions_keep_long_notes() -> None:
    note = ", ".join(f"result {i} 0.1 to 0.2" for i in range(20))
    assert str(About("m", note=note)) == f"model m \u00b7 {note}"
    assert len(str(About("m" * 9000, note="n" * 9000))) < 1300


def test_pictures_that_were_not_normalised_are_not_turned_back() -> None:
    pixels = torch.full((3, 2, 2), 0.25)
    for normal, level in ((True, 0.25 * 0.5 + 0.5), (False, 0.25)):
        image = SimpleNamespace(image_mean=(0.5,) * 3, image_std=(0.5,) * 3, do_normalize=normal)
        shown = _picture(pixels, SimpleNamespace(image_processor=image))
        assert (levels(shown) == round(255 * level)).all()
