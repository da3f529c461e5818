"""Items: what is refused before anything is measured on them."""

import dataclasses

import numpy as np
import pytest

from regap_interp.adaptive.item import Item, check_items, items_fingerprint, modality_of, pick

PICTURE = {"type": "image", "image": np.zeros((4, 4, 3), dtype=np.uint8)}
SOUND = {"type": "input_audio", "input_audio": {"data": ""}}
WORDS = {"type": "text", "text": "what is this"}


def chat(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(name="a-text", **more):
    return Item(name, [{"role": "user", "content": "what is it"}], False, "text", **more)


def image(name="a", **more):
    return Item(name, chat(PICTURE, WORDS), False, "image", **more)


@pytest.mark.parametrize(
    ("parts", "modality"),
    [
        ([WORDS], "text"),
        ([PICTURE, WORDS], "image"),
        ([PICTURE, PICTURE], "image"),
        ([SOUND, WORDS], "audio"),
        ([PICTURE, SOUND], "omni"),
    ],
)
def test_the_modality_is_that_of_the_parts(parts, modality):
    assert modality_of(chat(*parts)) == modality
    turns = [*chat(*parts), {"role": "assistant", "content": "ok"}, *chat(WORDS)]
    assert modality_of(turns) == modality


def test_a_modality_that_is_not_the_messages_is_refused():
    with pytest.raises(ValueError, match="messages are 'image'"):
        Item("a", chat(PICTURE), True, "audio")
    with pytest.raises(ValueError, match="expected one of text, image"):
        Item("a", chat(PICTURE), True, "picture")
    with pytest.raises(ValueError, match="only media have text twins"):
        text(twin_id="b")


def test_sound_items_pass():
    check_items([image(twin_id="a-text", split="direction"), text(split="direction")])


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ([], "no items"),
        ([text(), text()], "twice"),
        ([text(split="direction"), text(split="report")], "'direction' and 'report'"),
        ([image(twin_id="b")], "'b', which is not among"),
        ([image(twin_id="c"), image("c")], "a twin is text"),
        ([image(twin_id="a-text", split="report"), text(split="direction")], "pair lies in one"),
        ([image(cluster="q", split="report"), text(cluster="q", split="calibration")], "cluster"),
    ],
)
def test_what_would_leak_or_mislead_is_refused(items, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_items(items)


def test_a_twin_of_other_harm_is_refused():
    with pytest.raises(ValueError, match="do not match"):
        check_items([dataclasses.replace(image(twin_id="a-text"), harmful=True), text()])


def test_pick_takes_what_matches():
    items = [image(split="report"), text(split="report"), text("b", split="direction")]
    assert pick(items, split="report", modality="text") == [items[1]]
    assert pick(items, harmful=True) == []


def test_the_fingerprint_sees_media_and_labels_and_no_order():
    items = [image(), text()]
    other = np.zeros((4, 4, 3), dtype=np.uint8)
    other[0, 0, 0] = 1
    changed = dataclasses.replace(items[0], messages=chat({"type": "image", "image": other}, WORDS))
    assert items_fingerprint(items) == items_fingerprint(items[::-1])
    assert items_fingerprint(items) != items_fingerprint([changed, items[1]])
    assert items_fingerprint(items) != items_fingerprint([image(split="report"), text()])
