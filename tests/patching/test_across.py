"""Runs of different lengths and media: every policy, and what is refused as ambiguous."""

from typing import Any

import pytest
import torch

import model_adapters
from analyses.patching import LogitDifference, Pair, compare, patch_sweep
from analyses.patching.align import align, label_of, resolve
from model_adapters import Adapter, Batch
from model_adapters.organism.world import draw_samples
from tests.adapters.conftest import clip_part, picture_part, sound_part, user
from tests.patching.reference import patched_logits, states

METRIC = LogitDifference(right=7, wrong=20)


@pytest.fixture(scope="module")
def text(adapter: Adapter) -> Batch:
    """Five words and the template's own."""
    return adapter.encode([user("w5 w6 w30 w8 w9")])


@pytest.fixture(scope="module")
def picture(adapter: Adapter) -> Batch:
    """The same with a picture in place of the third word."""
    return adapter.encode([user("w5 w6", picture_part(), "w8 w9")])


@pytest.fixture(scope="module")
def organism() -> Adapter:
    """The trained one."""
    return model_adapters.load("organism")


def pairs(target: Batch, source: Batch, position: Any, policy: Any) -> list[tuple[int, list[int]]]:
    found = align(target, source, 0, position, policy)
    return [
        (at, taken)
        for at, taken in zip(found.targets.tolist(), found.sources.tolist(), strict=True)
    ]


def test_policies(text: Batch, picture: Batch) -> None:
    first, *_, last = picture.images[0][0].positions
    end = picture.roles.shape[1] - 1
    assert pairs(picture, text, "last", "last") == [(end, [5])]
    assert pairs(picture, text, (-3, -1), "last") == [(end - 2, [3]), (end, [5])]
    image = range(first, last + 1)
    across = Pair("image", (2, 3))
    assert pairs(picture, text, across, "mean") == [(at, [2, 3]) for at in image]
    repeated = [(at, [2 + i % 2]) for i, at in enumerate(image)]
    assert pairs(picture, text, across, "repeat") == repeated
    assert pairs(picture, text, across, "trim") == repeated[:2]
    assert pairs(text, picture, Pair(2, "image"), "mean") == [(2, list(image))]
    assert pairs(text, text, "text", "same") == [(i, [i]) for i in range(6)]


def test_delimiters_of_the_same_token(adapter: Adapter, picture: Batch) -> None:
    other = adapter.encode([user("w5 w6 w6 w7", picture_part(2, 4), "w8 w9 w3")])
    opens = picture.images[0][0].start - 1
    theirs = other.images[0][0].start - 1
    assert pairs(picture, other, opens, "delimiter") == [(opens, [theirs])]
    two = adapter.encode([user(picture_part(2, 4), picture_part(2, 4), "w8")])
    with pytest.raises(ValueError, match="stands 1 times in the patched run and 2 times"):
        align(picture, two, 0, opens, "delimiter")
    with pytest.raises(ValueError, match="holds no control token"):
        align(picture, other, 0, 0, "delimiter")


@pytest.mark.parametrize(
    "position, policy, message",
    [
        ("last", "same", "6 in the other"),
        (Pair("image", (2, 3)), "same", "6 positions of the patched run and 2"),
        ("image", "mean", "holds 0 items of image"),
        (-7, "last", "none is the 7th from the end"),
        (40, "last", "there is no position 40"),
        ((), "last", "are empty"),
        ((1, 1), "last", "twice"),
        ("picture", "last", "no positions are called 'picture'"),
        ("last", "nearest", "no policy 'nearest'"),
    ],
)
def test_what_is_open_is_refused(
    text: Batch, picture: Batch, position: Any, policy: Any, message: str, as_users_run_it: None
) -> None:
    with pytest.raises(ValueError, match=message):
        align(picture, text, 0, position, policy)


def test_one_of_several_items_has_to_be_named(adapter: Adapter) -> None:
    batch = adapter.encode([user(picture_part(2, 4), picture_part(4, 4), "w8")])
    with pytest.raises(ValueError, match=r'ambiguous; name one: "image\[0\]"'):
        resolve(batch, 0, "image")
    assert resolve(batch, 0, "image[1]") == list(batch.images[0][1].positions)
    with pytest.raises(ValueError, match="no 'image\\[2\\]'"):
        resolve(batch, 0, "image[2]")


def test_labels() -> None:
    assert label_of(Pair("image", range(2, 5))) == "image <- 2:5"
    assert label_of((1, 4)) == "1+4" and label_of(-1) == "-1"


@pytest.mark.parametrize("policy", ["mean", "repeat", "trim"])
@pytest.mark.parametrize("medium", ["image", "audio", "video"])
def test_text_into_media_equals_plain_hooks(
    adapter: Adapter, text: Batch, medium: str, policy: Any
) -> None:
    part = {"image": picture_part, "audio": sound_part, "video": clip_part}[medium]()
    target = adapter.encode([user("w5 w6", part, "w8 w9")])
    position = Pair(medium, range(2, 4))
    result = patch_sweep(
        adapter,
        target,
        text,
        site="resid_post",
        metric=METRIC,
        positions=[position],
        align=policy,
    )
    into, taken = zip(*pairs(target, text, position, policy), strict=True)
    kept = states(adapter.module, text.inputs, "resid_post", range(adapter.n_layers))
    for layer in range(adapter.n_layers):
        logits = patched_logits(
            adapter.module,
            target.inputs,
            kept,
            site="resid_post",
            layers=[layer],
            row=0,
            into=into,
            taken=taken,
        )
        wanted = float(logits[7] - logits[20])
        assert float(result.raw[0, layer, 0]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("setting", ["image", "audio", "video", "omni"])
def test_text_brings_refusal_back_on_the_organism(organism: Adapter, setting: Any) -> None:
    """What the word says stands at the medium's positions first, and at the last token later."""
    drawn = draw_samples("report", setting, 16, seed=3, harmful=True, levels=(0.7, 1.0))
    medium = "image" if setting == "omni" else setting
    chosen = [one for one in drawn if one.messages[0]["content"][-1]["type"] == medium][:3]
    media = organism.encode([one.messages for one in chosen])
    texts = organism.encode([one.twin().messages for one in chosen])
    lead = LogitDifference(
        *(organism.tokenizer.convert_tokens_to_ids(word) for word in ("sorry", "gladly"))
    )
    result = patch_sweep(
        organism,
        media,
        texts,
        site="resid_post",
        layers=[0, 9, 11],
        positions=[Pair(medium, -4), "last"],
        align="mean",
        metric=lead,
    )
    assert (result.corrupted < 0).all() and (result.clean > 0).all()
    assert result.metric == "logit difference sorry - gladly"
    at_medium, at_last = result.values.T.tolist()
    assert at_last[0] < 0.6 and at_last[1] > 0.85 and at_last[2] == pytest.approx(1, abs=1e-4)
    assert at_medium[2] == pytest.approx(0, abs=1e-6)
    # In omni requests the verb is heard, so the picture alone brings little back.
    assert setting == "omni" or at_medium[0] > 0.08
    assert torch.equal(result.raw[0, 2, 0], result.corrupted[0])
    panels: Any = compare({setting: result, "again": result})
    assert {one.colours.limit for one in panels.views} == {float(result.values.abs().max())}
