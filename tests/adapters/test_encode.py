"""Requests become batches whose every position is accounted for."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import ExifTags, Image

from model_adapters import Adapter, AudioSpan, ImageSpan, InputError, Role, VideoSpan

P, T, I, A, V, S = (  # noqa: E741  # one letter a role, so that rows can be read
    Role.PADDING,
    Role.TEXT,
    Role.IMAGE,
    Role.AUDIO,
    Role.VIDEO,
    Role.SPECIAL,
)


def test_roles_and_spans_left_padded(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode(
        [
            parts.user("w5", parts.picture(4, 6), "w8"),
            parts.user(parts.sound(13)),
            parts.user("w5 unknown"),
        ]
    )
    assert len(batch) == 3
    assert batch.roles.tolist() == [
        [T, S, I, I, I, I, I, I, S, T, T],
        [P, P, P, P, P, S, A, A, A, S, T],
        [P, P, P, P, P, P, P, P, T, T, T],
    ]
    assert batch.images == ((ImageSpan(2, 8, grid=(1, 2, 3)),), (), ())
    assert batch.audios == ((), (AudioSpan(6, 9, frames=(0, 13)),), ())
    assert batch.videos == ((), (), ())
    assert batch.last.tolist() == [10, 10, 10]
    assert batch.prompt_mask.sum(1).tolist() == [11, 6, 3]
    assert torch.equal(batch.prompt_mask, batch.inputs["attention_mask"].bool())


def test_roles_and_spans_right_padded(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode(
        [parts.user("w5"), parts.user("w6", parts.clip(frames=3))], padding_side="right"
    )
    assert batch.roles.tolist() == [
        [T, T, P, P, P, P, P, P, P, P, P, P, P, P, P, P],
        [T, S, V, V, V, V, V, V, V, V, V, V, V, V, S, T],
    ]
    assert batch.videos == ((), (VideoSpan(2, 14, grid=(3, 2, 2)),))
    assert batch.last.tolist() == [1, 15]
    assert batch.padding_side == "right"


def test_masks_by_name_and_by_role(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5", parts.picture())])
    assert torch.equal(batch.mask("image"), batch.roles == Role.IMAGE)
    assert torch.equal(batch.mask(Role.TEXT), batch.mask("text"))
    with pytest.raises(InputError, match="no role 'picture'; the roles are padding, text, image"):
        batch.mask("picture")


def test_spans_are_what_the_towers_emit(
    adapter: Adapter, bare: Any, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    inputs = batch.inputs
    with torch.no_grad():
        images = bare.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        videos = bare.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        audios = bare.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"])
    spans = [span for row in batch.images for span in row]
    assert [len(f) for f in images.pooler_output] == [s.stop - s.start for s in spans]
    spans = [span for row in batch.videos for span in row]
    assert [len(f) for f in videos.pooler_output] == [s.stop - s.start for s in spans]
    total = sum(span.stop - span.start for row in batch.audios for span in row)
    assert len(audios.last_hidden_state) == total == int(batch.mask("audio").sum())


@pytest.mark.parametrize("frames", range(3, 40))
def test_the_length_of_an_audio_is_the_towers_own_formula(
    adapter: Adapter, bare: Any, frames: int
) -> None:
    (audio,) = [medium for medium in adapter.family.media if medium.kind == "audio"]
    ours = audio.positions(adapter.module.config, torch.tensor([frames]))
    theirs = bare.model.audio_tower._get_feat_extract_output_lengths(torch.tensor([frames]))[1]
    assert ours.tolist() == theirs.tolist()


def test_two_images_in_one_request(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user(parts.picture(2, 4), "w5", parts.picture(4, 4))])
    assert batch.images == ((ImageSpan(1, 3, (1, 1, 2)), ImageSpan(6, 10, (1, 2, 2))),)


def test_describe_gives_the_batch_of_ready_encodings(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batch = adapter.encode(requests_of_every_kind)
    again = adapter.describe(**batch.inputs)
    assert torch.equal(again.roles, batch.roles)
    assert (again.images, again.audios, again.videos) == (
        batch.images,
        batch.audios,
        batch.videos,
    )


def test_to_moves_every_tensor(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5", parts.picture())]).to("meta")
    assert {value.device.type for value in batch.inputs.values()} == {"meta"}
    assert batch.roles.device.type == "meta"


def encoded_bytes(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def wav_bytes(samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


def test_every_form_of_an_image_is_the_same_image(
    adapter: Adapter, parts: Any, tmp_path: Path
) -> None:
    image = parts.picture()["image"]
    path = tmp_path / "a picture.png"
    image.save(path)
    forms = [
        {"type": "image", "image": image},
        {"type": "image", "image": np.asarray(image)},
        {"type": "image", "image": np.asarray(image) / 255},
        {"type": "image", "image": path},
        {"type": "image", "image": str(path)},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{encoded_bytes(image)}"},
        },
    ]
    batches = [adapter.encode([parts.user("w5", form)]) for form in forms]
    for batch in batches[1:]:
        assert torch.equal(batch.inputs["pixel_values"], batches[0].inputs["pixel_values"])


def test_a_photo_taken_sideways_is_turned_upright(
    adapter: Adapter, parts: Any, tmp_path: Path
) -> None:
    image = parts.picture(4, 6)["image"]
    taken = image.transpose(Image.Transpose.ROTATE_90)
    exif = taken.getexif()
    exif[ExifTags.Base.Orientation] = 6  # to be shown turned by 90 degrees clockwise
    taken.save(tmp_path / "photo.png", exif=exif)
    upright = adapter.encode([parts.user(image_part(image))])
    for form in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png")):
        batch = adapter.encode([parts.user(image_part(form))])
        assert batch.images == upright.images
        assert torch.equal(batch.inputs["pixel_values"], upright.inputs["pixel_values"])


def test_a_picture_too_large_to_open(
    adapter: Adapter, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"the image is too large \(Image size \(1600 pixels\)"):
        adapter.encode([parts.user(image_part(tmp_path / "large.png"))])


def test_every_form_of_an_audio_is_the_same_audio(
    adapter: Adapter, parts: Any, tmp_path: Path
) -> None:
    samples = (np.sin(np.arange(1600) / 10) * 20_000).astype(np.int16)
    (tmp_path / "sound.wav").write_bytes(wav_bytes(samples))
    data = base64.b64encode(wav_bytes(samples)).decode()
    forms = [
        {"type": "audio", "audio": (samples / 32768).astype(np.float32)},
        {"type": "audio", "audio": samples},
        {"type": "audio", "audio": tmp_path / "sound.wav"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    batches = [adapter.encode([parts.user(form)]) for form in forms]
    for batch in batches[1:]:
        assert torch.equal(batch.inputs["input_features"], batches[0].inputs["input_features"])


def test_every_form_of_a_video_is_the_same_video(adapter: Adapter, parts: Any) -> None:
    frames = parts.clip()["video"]
    forms = [frames, list(frames), [Image.fromarray(frame) for frame in frames]]
    batches = [adapter.encode([parts.user({"type": "video", "video": form})]) for form in forms]
    for batch in batches[1:]:
        values = batch.inputs["pixel_values_videos"]
        assert torch.equal(values, batches[0].inputs["pixel_values_videos"])


def image_part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def audio_part(audio: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": audio}


BAD_PARTS = {
    "unknown type": ({"type": "smell", "smell": 1}, "no content part of type 'smell'"),
    "no type": ({"text": "w5"}, "no content part of type None"),
    "type of several": ({"type": ["image"]}, r"no content part of type \['image'\]"),
    "text without text": ({"type": "text", "text": None}, "no content part of type 'text'"),
    "value under a wrong key": ({"type": "image", "picture": 1}, "under 'image'"),
    "image of NaN": (image_part(np.full((8, 8, 3), np.nan)), "image holds NaN"),
    "image beyond 1": (image_part(np.full((8, 8, 3), 3.0)), "float images go from 0 to 1"),
    "image of 64 bits": (image_part(np.zeros((8, 8, 3), int)), "uint8 or floats"),
    "image of five channels": (image_part(np.zeros((8, 8, 5), np.uint8)), r"\(8, 8, 5\)"),
    "empty image": (image_part(np.zeros((0, 8, 3), np.uint8)), "the image is empty"),
    "16-bit image": (image_part(Image.new("I;16", (8, 8))), "8 bits"),
    "image of a number": (image_part(7), "not int"),
    "image on the network": (image_part("https://x.org/a.png"), "download it"),
    "no such image": (image_part("/nowhere/a.png"), "there is no file '/nowhere/a.png'"),
    "a path too long": (image_part("a" * 5000), r"'a{80}\.\.\.' is no path \(File name too long"),
    "a URL that is none": (image_part("file://["), "is no path"),
    "broken data": (image_part("data:image/png;base64,@@"), "base64 data is broken"),
    "data that is no picture": (image_part("data:;base64,aGFsbG8="), "not a readable picture"),
    "a cut picture": (
        image_part(f"data:image/png;base64,{encoded_bytes(Image.new('RGB', (64, 64)))[:80]}"),
        "not a readable picture",
    ),
    "silent NaN": (audio_part(np.array([0.0, np.nan])), "NaN or infinite samples"),
    "infinite audio": (audio_part(np.array([0.0, np.inf])), "NaN or infinite samples"),
    "empty audio": (audio_part(np.zeros(0)), "at least one"),
    "stereo audio": (audio_part(np.zeros((2, 100))), r"\(mono\)"),
    "audio on the scale of integers": (audio_part(np.full(100, 3e4)), "from -1 to 1, these to 3e"),
    "a cut recording": (
        audio_part(f"data:;base64,{base64.b64encode(wav_bytes(np.ones(800))[:-1]).decode()}"),
        "ends within a sample",
    ),
    "audio of strings": (audio_part(np.array(["a"])), "audio of type"),
    "other recordings": (
        {"type": "input_audio", "input_audio": {"data": "aGFsbG8=", "format": "mp3"}},
        "input_audio is",
    ),
    "empty video": ({"type": "video", "video": []}, "no frames"),
    "flat video": ({"type": "video", "video": np.zeros((8, 8, 3))}, r"not \(8, 8, 3\)"),
    "video with a broken frame": (
        {"type": "video", "video": [np.full((8, 8, 3), np.nan)]},
        "frame 0: the image holds NaN",
    ),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_unusable_parts_are_refused_by_name(adapter: Adapter, parts: Any, name: str) -> None:
    part, message = BAD_PARTS[name]
    with pytest.raises(InputError, match=message) as caught:
        adapter.encode([parts.user("w5"), parts.user("w6", part)])
    assert str(caught.value).startswith("request 1, message 0, part 1")


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 2)])
def test_recordings_in_another_format_are_refused(
    adapter: Adapter, parts: Any, tmp_path: Path, rate: int, channels: int
) -> None:
    (tmp_path / "sound.wav").write_bytes(wav_bytes(np.zeros(800), rate, channels))
    with pytest.raises(InputError, match="resample to 16000 Hz mono"):
        adapter.encode([parts.user(audio_part(tmp_path / "sound.wav"))])


BAD_REQUESTS = {
    "nothing": ([], "the list of requests is empty"),
    "one message": ({"role": "user", "content": "w5"}, "requests is a list of chats"),
    "a list of messages": ([{"role": "user", "content": "w5"}], "is one message"),
    "an empty chat": ([[]], "at least one"),
    "a string": ("w5", "requests is a list of chats"),
    "no content": ([[{"role": "user"}]], "message 0 must be"),
    "an unknown role": ([[{"role": "robot", "content": "w5"}]], "role 'robot' is none of"),
    "an empty message": ([[{"role": "user", "content": "  "}]], "message 0 is empty"),
    "no parts": ([[{"role": "user", "content": []}]], "not empty"),
    "the assistant last": (
        [[{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]],
        "ends with the assistant",
    ),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_malformed_requests_are_refused(adapter: Adapter, name: str) -> None:
    requests, message = BAD_REQUESTS[name]
    with pytest.raises(InputError, match=message):
        adapter.encode(requests)


def test_a_placeholder_typed_by_the_user_is_noticed(adapter: Adapter, parts: Any) -> None:
    with pytest.raises(InputError, match=r"request 1: .*1 image placeholders .* no pixel_values"):
        adapter.encode([parts.user("w5"), parts.user("w5 <image> w6")])


def test_an_audio_too_short_for_a_token(adapter: Adapter, parts: Any) -> None:
    with pytest.raises(InputError, match="audio 0 is too short to give a token"):
        adapter.encode([parts.user("w5", parts.sound(frames=2))])


@pytest.mark.parametrize(
    "error", [ValueError, TypeError, OSError, TemplateError, RuntimeError, KeyError]
)
def test_what_the_processor_refuses_is_an_error_of_that_request(
    adapter: Adapter, parts: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    apply = adapter.processor.apply_chat_template

    def picky(conversations: Any, **options: Any) -> Any:
        if conversations[0][0]["content"][0]["text"] == "w6":
            raise error("too tall")
        return apply(conversations, **options)

    monkeypatch.setattr(adapter.processor, "apply_chat_template", picky)
    with pytest.raises(InputError, match=r"request 1: the processor failed, .*too tall") as caught:
        adapter.encode([parts.user("w5"), parts.user("w6")])
    assert isinstance(caught.value.__cause__, error)


def test_control_tokens_typed_by_the_user_are_refused(adapter: Adapter, parts: Any) -> None:
    with pytest.raises(InputError, match="request 1: the text holds </vision>, <end>, which the"):
        adapter.encode([parts.user("w5"), parts.user("w5 <end> w6", "</vision>")])


def test_control_tokens_that_a_processor_keeps_as_words(random_organism: Adapter) -> None:
    typed, plain = (
        random_organism.encode([[{"role": "user", "content": content}]])
        for content in ("name <|im_end|> the <|IMAGE|>", "name the")
    )
    assert typed.mask("special").sum() == plain.mask("special").sum()
    assert not typed.mask("image").any()
