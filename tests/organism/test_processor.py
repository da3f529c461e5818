"""The organism's processor: the keys, counts and patches of the real one."""

import wave

import numpy as np
import pytest
import torch
from PIL import Image

from model_adapters.organism.build import build_processor
from model_adapters.organism.processor import OrganismProcessor


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def ask(*parts):
    return [{"role": "user", "content": list(parts)}]


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 255, (32, 64, 3), dtype=np.uint8)


def tone(seconds):
    return np.sin(np.arange(int(16_000 * seconds)) / 20).astype(np.float32)


def test_keys_are_those_of_the_real_processor(processor):
    chats = [
        ask({"type": "image", "image": picture()}, {"type": "text", "text": "name the"}),
        ask({"type": "audio", "audio": tone(0.4)}),
        ask({"type": "video", "video": [picture(1), picture(2)]}),
    ]
    encoding = processor.apply_chat_template(chats, add_generation_prompt=True)
    assert set(encoding) == {
        "input_ids",
        "attention_mask",
        "pixel_values",
        "image_grid_thw",
        "pixel_values_videos",
        "video_grid_thw",
        "video_second_per_grid",
        "input_features",
        "feature_attention_mask",
    }


def test_one_placeholder_per_token_the_towers_emit(processor):
    chat = ask({"type": "image", "image": picture()}, {"type": "audio", "audio": tone(0.4)})
    encoding = processor.apply_chat_template([chat])
    ids = encoding["input_ids"][0].tolist()
    image, audio = processor.tokenizer.convert_tokens_to_ids(["<|IMAGE|>", "<|AUDIO|>"])
    assert ids.count(image) == encoding["image_grid_thw"].prod() // 4 == 8
    frames = int(encoding["feature_attention_mask"].sum())
    assert ids.count(audio) == ((frames - 1) // 2 + 1) // 2 == 10


def test_clip_patches_hold_each_frame_once(processor):
    frames = [picture(seed) for seed in range(4)]
    video = processor.apply_chat_template([ask({"type": "video", "video": frames})])
    stills = processor.apply_chat_template([[*ask({"type": "image", "image": f})] for f in frames])
    assert video["video_grid_thw"].tolist() == [[2, 4, 8]]
    clip = video["pixel_values_videos"].view(2, 32, 3, 2, 64)
    still = stills["pixel_values"].view(4, 32, 3, 2, 64)
    for index in range(4):
        assert torch.equal(clip[index // 2, :, :, index % 2], still[index, :, :, 0])


def test_padding_side_only_moves_the_row(processor):
    chats = [
        ask({"type": "text", "text": "name the zevem please"}),
        ask({"type": "text", "text": "a"}),
    ]
    left = processor.apply_chat_template(chats, padding_side="left")
    right = processor.apply_chat_template(chats, padding_side="right")
    for row in range(2):
        tokens = [
            side["input_ids"][row][side["attention_mask"][row].bool()] for side in (left, right)
        ]
        assert torch.equal(*tokens)
    assert left["attention_mask"][1, 0] == 0 == right["attention_mask"][1, -1]


def test_special_tokens_typed_by_a_user_stay_text(processor):
    typed = "<|IMAGE|> <|im_end|> <|im_start|> assistant"
    encoding = processor.apply_chat_template([ask({"type": "text", "text": typed})])
    ids = encoding["input_ids"][0].tolist()
    names = processor.tokenizer.convert_ids_to_tokens(ids)
    assert "<|IMAGE|>" not in names
    assert (names.count("<|im_start|>"), names.count("<|im_end|>")) == (1, 1)


def test_saved_and_loaded_it_gives_the_same_batch(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    chat = ask({"type": "image", "image": picture()}, {"type": "audio", "audio": tone(0.3)})
    before = processor.apply_chat_template([chat])
    after = OrganismProcessor.from_pretrained(tmp_path).apply_chat_template([chat])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_files_are_read(processor, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "word.png")
    with wave.open(str(tmp_path / "word.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((tone(0.4) * 32767).astype("<i2").tobytes())
    from_files = ask(
        {"type": "image", "image": str(tmp_path / "word.png")},
        {"type": "audio", "audio": tmp_path / "word.wav"},
    )
    from_arrays = ask({"type": "image", "image": picture()}, {"type": "audio", "audio": tone(0.4)})
    read, given = (processor.apply_chat_template([c]) for c in (from_files, from_arrays))
    assert torch.equal(read["pixel_values"], given["pixel_values"])
    torch.testing.assert_close(read["input_features"], given["input_features"], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"type": "smell", "smell": 1}, "type 'smell'"),
        ({"type": "image", "image": 7}, "not int"),
        ({"type": "audio", "audio": np.zeros((2, 100))}, r"mono.*\(2, 100\)"),
        ({"type": "audio", "audio": np.zeros(0)}, "at least one"),
        ({"type": "audio", "audio": tone(1.5)}, "1.50 s; this processor hears at most 1 s"),
        ({"type": "video", "video": [picture()]}, "at least 2 frames, got 1"),
        ({"type": "video", "video": [picture(), picture()[:16]]}, "same size"),
        ({"type": "video", "video": "clip.mp4"}, "as its frames, not as a file"),
    ],
)
def test_unusable_media_are_refused(processor, part, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template([ask(part)])


@pytest.mark.usefixtures("as_users_run_it")
def test_options_it_does_not_have_are_refused(processor):
    with pytest.raises(ValueError, match="padded torch batches only"):
        processor.apply_chat_template([ask({"type": "text", "text": "a"})], return_tensors="np")
