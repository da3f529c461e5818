"""Whatever a user hands over: the right result, or a clear error before the forward pass.

Every case runs on the tiny thinker; afterwards its trace is what it was before.
"""

import base64
import io
import tracemalloc
import warnings
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import model_adapters
from model_adapters import Adapter, InputError
from tests.adapters.conftest import clip_part, picture_part, sound_part, user

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (16, 24, 3)).astype(np.uint8)
SAMPLES = RNG.uniform(-0.5, 0.5, 160 * 21)


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def audio(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": value, **more}


def video(value: Any) -> dict[str, Any]:
    return {"type": "video", "video": value}


def data_url(image: Image.Image, form: str, *, keep: float = 1.0) -> str:
    """An image file, perhaps only its beginning, as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    raw = buffer.getvalue()
    return "data:;base64," + base64.b64encode(raw[: int(len(raw) * keep)]).decode()


def recording(samples: np.ndarray, *, rate: int = 16_000, channels: int = 1) -> str:
    """A WAV file as a data URL."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return "data:;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def untouched(adapter: Adapter) -> Iterator[list[object]]:
    """The forwards that ran, and after the test the model as it was."""
    before = logits(adapter)
    ran: list[object] = []
    handle = adapter.module.register_forward_pre_hook(lambda *_: ran.append(1))
    yield ran
    handle.remove()
    assert torch.equal(logits(adapter), before)


def logits(adapter: Adapter) -> Tensor:
    """Of a trace over a request with an image and an audio."""
    with adapter.trace(adapter.encode([user("w5", picture_part(), sound_part())])):
        found = adapter.logits.save()
    return found


def tall(rows: int, columns: int) -> np.ndarray:
    return np.zeros((rows, columns, 3), np.uint8)


REFUSED: dict[str, tuple[Any, str]] = {
    # pictures
    "an image of no size": (image(tall(0, 8)), "the image is empty"),
    "an image file of no size": (image(Image.new("RGB", (0, 4))), "the image is empty, 0 by 4"),
    "a 16-bit picture": (image(Image.new("I;16", (16, 24))), "scale it to 8 bits"),
    "a 16-bit file": (image(data_url(Image.new("I;16", (8, 8)), "PNG")), "scale it to 8 bits"),
    "a 16-bit array": (image(PIXELS.astype(np.uint16)), "uint8 or floats"),
    "a 32-bit picture": (image(Image.new("F", (16, 24))), "scale it to 8 bits"),
    "a cut PNG": (image(data_url(Image.fromarray(PIXELS), "PNG", keep=0.6)), "not a readable"),
    "a cut JPEG": (image(data_url(Image.fromarray(PIXELS), "JPEG", keep=0.8)), "not a readable"),
    "10,000 pixels on a side": (image(tall(10_000, 10_000)), r"10000 by 10000.*thumbnail"),
    "a tensor": (image(torch.zeros(3, 8, 8)), "a numpy array or a path, not Tensor"),
    "channels first": (image(np.zeros((3, 8, 9), np.uint8)), r"\[rows, columns, 3 or 4\]"),
    # sounds
    "stereo": (audio(np.zeros((2, 3200))), r"mix them yourself: audio.mean\(axis=0\)"),
    "stereo, channels last": (audio(np.zeros((3200, 2))), r"audio.mean\(axis=1\)"),
    "a stereo file": (audio(recording(SAMPLES, channels=2)), r"2 channel\(s\).*mean\(axis=1\)"),
    "an 8 kHz file": (audio(recording(SAMPLES, rate=8_000)), r"8000 Hz.*resample_poly"),
    "8 kHz, as it says": (audio(SAMPLES, sampling_rate=8_000), r"8000 Hz.*resample_poly"),
    "8 kHz of a data set": (
        audio({"array": SAMPLES, "sampling_rate": 8_000}),
        "resample_poly.audio, 16000, 8000",
    ),
    "unsigned integers": (audio(np.full(3200, 128, np.uint8)), "audio of type uint8"),
    "integers in floats": (audio(SAMPLES * 32_768), "from -1 to 1"),
    "NaN": (audio(np.full(3200, np.nan)), "NaN or infinite"),
    "no samples": (audio(np.zeros(0)), "at least one"),
    "one sample": (audio(np.zeros(1)), "too short"),
    "no samples in the file": (audio(recording(np.zeros(0))), "at least one"),
    # videos
    "no frames": (video([]), "no frames"),
    "frames of two sizes": (video([PIXELS, PIXELS[:8]]), "request 1: .*shape"),
    "one picture as a video": (video(PIXELS), r"\[time, rows, columns, 3\]"),
    # texts
    "an empty message": ("", "message 0 is empty"),
    "blanks": (" \n\t ", "message 0 is empty"),
    "a placeholder's name": ("w5 <image> w6", "image placeholders .* no pixel_values"),
    "control tokens": ("w5 <end> <sound> w6", "the text holds <end>, <sound>"),
    "an option nobody reads": ({**image(PIXELS), "max_pixels": 10}, "nothing reads 'max_pixels'"),
    "no text, no medium": ({"type": "text"}, "no content part of type 'text'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(adapter: Adapter, untouched: list[object], name: str) -> None:
    part, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        adapter.encode([user("w5"), user(part)])
    assert str(caught.value).startswith("request 1")
    assert not untouched


CHATS: dict[str, tuple[Any, str]] = {
    "no requests": ([], "the list of requests is empty"),
    "no messages": ([[]], "at least one"),
    "no content": ([[{"role": "user", "content": []}]], "not empty"),
    "null": ([[{"role": "user", "content": None}]], "not empty"),
    "the assistant last": (
        [[*user("w5"), {"role": "assistant", "content": "w6"}]],
        "ends with the assistant",
    ),
    "a robot": ([[{"role": "robot", "content": "w5"}]], "role 'robot' is none of"),
}


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", CHATS)
def test_chats_refused_before_anything_runs(
    adapter: Adapter, untouched: list[object], name: str
) -> None:
    requests, message = CHATS[name]
    with pytest.raises(InputError, match=message):
        adapter.encode(requests)
    assert not untouched


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def cmyk() -> tuple[Image.Image, np.ndarray]:
    inks = RNG.integers(0, 255, (16, 24, 4)).astype(np.uint8)
    found = Image.merge("CMYK", [Image.fromarray(inks[..., i]) for i in range(4)])
    dark = inks.astype(float) / 255
    return found, np.rint(255 * (1 - dark[..., :3]) * (1 - dark[..., 3:])).astype(np.uint8)


def palette() -> tuple[Image.Image, np.ndarray]:
    found = Image.fromarray(PIXELS).quantize(16)
    return found, np.asarray(found.convert("RGB"))


WHITE = np.full((16, 24, 1), 255, np.uint8)
# What is given, and the RGB pixels that it shows.
PICTURES: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {
    "greyscale array": lambda: (PIXELS[..., 0], grey(PIXELS[..., 0])),
    "greyscale picture": lambda: (Image.fromarray(PIXELS[..., 0]), grey(PIXELS[..., 0])),
    "greyscale with alpha": lambda: (
        Image.fromarray(PIXELS[..., 0]).convert("LA"),
        grey(PIXELS[..., 0]),
    ),
    "RGBA array": lambda: (np.concatenate([PIXELS, WHITE], axis=2), PIXELS),
    "RGBA picture": lambda: (Image.fromarray(PIXELS).convert("RGBA"), PIXELS),
    "CMYK": cmyk,
    "palette": palette,
    "black and white": lambda: (
        Image.fromarray(PIXELS[..., 0] > 127),
        grey((PIXELS[..., 0] > 127).astype(np.uint8) * 255),
    ),
    "floats": lambda: ((PIXELS / 255).astype(np.float32), PIXELS),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_every_mode_show_what_they_show(
    adapter: Adapter, untouched: list[object], name: str
) -> None:
    given, shown = PICTURES[name]()
    found, expected = (adapter.encode([user("w5", image(one))]) for one in (given, shown))
    difference = found.inputs["pixel_values"] - expected.inputs["pixel_values"]
    # The inks of a CMYK picture round one step differently.
    assert difference.abs().max() <= (1.01 / 255 if name == "CMYK" else 0)
    assert adapter(found).logits.isfinite().all()


def test_a_huge_file_is_not_decoded(
    adapter: Adapter, untouched: list[object], tmp_path: Path
) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    tracemalloc.start()
    with pytest.raises(InputError, match=r"the image is too large .*make it smaller"):
        adapter.encode([user(image(tmp_path / "bomb.png"))])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2_000_000
    assert not untouched


def test_a_long_thin_picture(adapter: Adapter, untouched: list[object]) -> None:
    strip = tall(8, 10_000)
    strip[:] = RNG.integers(0, 255, strip.shape)
    batch = adapter.encode([user(image(strip))])
    assert batch.images[0][0].grid == (1, 1, 1250)
    assert adapter(batch).logits.isfinite().all()


SOUNDS: dict[str, tuple[Any, Any]] = {
    "integers": ((SAMPLES * 2**15).astype(np.int16), np.trunc(SAMPLES * 2**15) / 2**15),
    "wide integers": ((SAMPLES * 2**31).astype(np.int32), SAMPLES),
    "doubles": (SAMPLES, SAMPLES.astype(np.float32)),
    "halves": (SAMPLES.astype(np.float16), SAMPLES.astype(np.float16).astype(np.float32)),
    "of a data set": ({"array": SAMPLES, "sampling_rate": 16_000}, SAMPLES),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_of_every_type_sound_the_same(
    adapter: Adapter, untouched: list[object], name: str
) -> None:
    found, expected = (adapter.encode([user(audio(one))]) for one in SOUNDS[name])
    torch.testing.assert_close(
        found.inputs["input_features"], expected.inputs["input_features"], atol=1e-6, rtol=0
    )
    assert adapter(found).logits.isfinite().all()


def test_silence(adapter: Adapter, random_organism: Adapter, untouched: list[object]) -> None:
    silence = user("name", audio(np.zeros(16_000)))
    for one in (adapter, random_organism):
        batch = one.encode([silence])
        assert one(batch).logits.isfinite().all()


@pytest.mark.parametrize("form", [list, np.stack])
def test_a_video_of_one_frame(
    adapter: Adapter, random_organism: Adapter, untouched: list[object], form: Any
) -> None:
    request = user("name", video(form([RNG.integers(0, 255, (32, 32, 3)).astype(np.uint8)])))
    batch = adapter.encode([request])
    assert batch.videos[0][0].grid[0] == 1
    assert adapter(batch).logits.isfinite().all()
    with pytest.raises(InputError, match="a video must have at least 2 frames, got 1"):
        random_organism.encode([request])


def test_two_images_and_one_placeholder_and_the_reverse(
    adapter: Adapter, untouched: list[object]
) -> None:
    one = adapter.encode([user(picture_part())]).inputs
    two = adapter.encode([user(picture_part(), picture_part(seed=1))]).inputs
    media = ("pixel_values", "image_grid_thw")
    for text, pictures in ((one, two), (two, one)):
        inputs = {**text, **{name: pictures[name] for name in media}}
        for run in (adapter.trace, adapter.describe, adapter):
            with pytest.raises(InputError, match="image tower will emit"):
                run(**inputs)
    assert not untouched


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_a_medium_that_the_model_does_not_take(text_adapter: Adapter, kind: str) -> None:
    part = {"image": picture_part(), "audio": sound_part(), "video": clip_part()}[kind]
    with pytest.raises(InputError, match=f"this model takes no {kind}; it takes text"):
        text_adapter.encode([user("w5", part)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_that_mixes_everything(
    adapter: Adapter,
    small_processor: Any,
    fresh_thinker: Any,
    untouched: list[object],
    dtype: torch.dtype,
) -> None:
    one = model_adapters.load(fresh_thinker().to(dtype), processor=small_processor)
    chat = [
        {"role": "system", "content": "w3 w4"},
        *user(picture_part(2, 4), "w5"),
        {"role": "assistant", "content": "w6"},
        *user(sound_part(13), "w7", clip_part(frames=1), picture_part(4, 4)),
    ]
    requests = [chat, user("w5"), user(clip_part(3)), user(sound_part(40), sound_part(40, seed=1))]
    batch = one.encode(requests)
    assert batch.modalities == ("omni", "text", "video", "audio")
    together = one(batch).logits[:, -1]
    alone = torch.cat([one(one.encode([request])).logits[:, -1] for request in requests])
    error = (together - alone).float().abs().max() / alone.float().abs().max()
    assert error < (1e-5 if dtype is torch.float32 else 5e-2)


def test_a_warning_is_no_answer(adapter: Adapter, untouched: list[object], tmp_path: Path) -> None:
    """Pillow only warns of a picture of 100 million pixels."""
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="10000 by 10000 pixels"):
            adapter.encode([user(image(tmp_path / "large.png"))])
    assert not untouched
