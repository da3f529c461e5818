"""Requests, their states, and coordinates along directions made of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.geometry import Requests, States, coordinates, measure_states, plane
from model_adapters import Adapter
from model_adapters.encode import Chat
from regap_interp.adaptive.item import Item
from regap_interp.directions import Direction
from tests.geometry.worlds import hooked, named, plant, worded

Measured = tuple[Adapter, Requests, States]


def item(name: str, text: str = "one two", **more: object) -> Item:
    chat: Chat = [{"role": "user", "content": text}]
    return Item(id=name, messages=chat, harmful=False, modality="text", **more)  # type: ignore[arg-type]


def test_states_are_those_of_plain_hooks(measured: Measured) -> None:
    adapter, requests, states = measured
    for row, batch in enumerate(requests.batches(adapter, 1)):
        plain = hooked(adapter, batch)
        torch.testing.assert_close(states.values[:, row], plain, rtol=1e-4, atol=1e-4)


def test_directions_are_differences_of_means() -> None:
    states = plant()
    values, harmful = states.values[0], states.requests.harmful
    text, image = slice(0, 60), slice(60, 120)
    refusal = states.refusal(0)
    up, down = values[text][harmful[text]].mean(0), values[text][~harmful[text]].mean(0)
    torch.testing.assert_close(refusal.vector, up - down)
    torch.testing.assert_close(refusal.centre, down)
    for pairs, rows in (("harmful", harmful[text]), ("benign", ~harmful[text])):
        drift = states.drift("image", 0, pairs=pairs)
        torch.testing.assert_close(drift.vector, (values[image] - values[text])[rows].mean(0))
        assert drift.n_towards == 30
    both = states.drift("image", 0, pairs="balanced")
    torch.testing.assert_close(both.vector, states.drift("image", 0, pairs="all").vector)
    assert abs(states.correction("image", 0).vector @ refusal.unit) < 1e-12


def test_coordinates_put_harmless_text_at_0_and_harmful_text_at_1() -> None:
    states = plant()
    found = plane(states, states.refusal(0), states.drift("image", 0, pairs="all"))
    harmful, text = states.requests.harmful[:60], slice(0, 60)
    assert found.refusal[text][harmful].mean() == pytest.approx(1)
    assert found.refusal[text][~harmful].mean() == pytest.approx(0, abs=1e-12)
    assert found.drift[text].mean() == pytest.approx(0, abs=1e-12)
    assert found.drift[60:].mean() == pytest.approx(1)
    assert found.cosine == pytest.approx(
        float(
            torch.cosine_similarity(
                states.refusal(0).vector, states.drift("image", 0, pairs="all").vector, dim=0
            )
        )
    )


def test_directions_of_elsewhere_are_refused() -> None:
    states = plant(layers=2)
    moved = dataclasses.replace(states, source=dataclasses.replace(states.source, site="resid_pre"))
    with pytest.raises(ValueError, match="take its origin off"):
        coordinates(moved, states.refusal(1))
    bare = Direction(torch.ones(16), torch.zeros(16), 0, 0)
    with pytest.raises(ValueError, match="give its layer"):
        coordinates(states, bare)
    assert coordinates(states, bare, layer=1).shape == (120,)
    with pytest.raises(ValueError, match=r"layer 7 was not read; the layers are \[0, 1\]"):
        states.refusal(7)


def test_items_become_requests_and_pairs_share_a_cluster() -> None:
    items = [item("a", split="direction"), item("b", cluster="both", split="report")]
    assert Requests.of(items).cluster == ("a", "both")
    assert Requests.of(items, split="report").ids == ("b",)
    with pytest.raises(ValueError, match="no items of the split 'other' among 2"):
        Requests.of(items, split="other")
    assert named(2).cluster == ("text 0", "text 1") * 2


def test_the_fingerprint_is_that_of_contents_and_order() -> None:
    def of(text: str, value: object = None, name: str = "a") -> str:
        chat: Chat = [{"role": "user", "content": [{"type": "text", "text": text, "x": value}]}]
        return Requests(
            (chat,), (name,), torch.tensor([True]), ("text",), (None,), ("a",)
        ).fingerprint()

    assert of("one") == of("one")
    assert of("one", np.float32(2)) == of("one", 2.0)
    odd = [of("one", object()), of("one"), of("two"), of("one", 2.0), of("one", name="b")]
    assert len(set(odd)) == 5
    assert of("one", np.ones(3)) != of("one", np.zeros(3))
    first = named(2)
    assert first.fingerprint() != first.only([0, 1]).fingerprint()


def test_requests_that_do_not_fit_together_are_refused() -> None:
    good = named(4)
    with pytest.raises(ValueError, match="two requests have the id 'text 0'"):
        dataclasses.replace(good, ids=("text 0",) * 8)
    with pytest.raises(ValueError, match="harmful has 7 entries for 8 requests"):
        dataclasses.replace(good, harmful=good.harmful[:7])
    with pytest.raises(ValueError, match=r"'image 0' .* has the twin 'text 1'"):
        dataclasses.replace(good, twin=(None,) * 4 + ("text 1",) * 4)
    with pytest.raises(ValueError, match=r"0 audio pair\(s\)"):
        good.pairs("audio")
    with pytest.raises(ValueError, match="expected one of harmful, benign"):
        good.pairs("image", "some")
    with pytest.raises(ValueError, match="0 harmful and 0 harmless text requests"):
        plant(4).__class__(
            plant(4).values[:, 4:], (0,), good.only(good.rows(modality="image")), plant().source
        ).refusal(0)


def test_a_batch_is_not_cut(measured: Measured) -> None:
    adapter, requests, _ = measured
    together = adapter.join([one.inputs for one in requests.batches(adapter, 1)[:2]])
    joined = Requests.encoded([together], harmful=[True, False])
    assert joined.modality == requests.modality[:2]
    with pytest.raises(ValueError, match="1 of the 2 rows of a batch are wanted"):
        joined.only([0])
    assert joined.only([0, 1]).ids == ("0", "1")


def test_a_site_without_layers_is_refused(random_organism: Adapter) -> None:
    with pytest.raises(ValueError, match="expected one that layers have"):
        measure_states(random_organism, named(2), site="logits")


def test_files_count_by_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "one.png"

    def of(value: object, kind: str = "image") -> str:
        chat: Chat = [{"role": "user", "content": [{"type": kind, kind: value}]}]
        return Requests(
            (chat,), ("a",), torch.tensor([True]), ("image",), (None,), ("a",)
        ).fingerprint()

    ways: list[tuple[object, str]] = [
        (str(file), "image"),
        (file, "image"),
        (file.as_uri(), "image"),
        ({"url": str(file)}, "image_url"),
        ([str(file)] * 2, "video"),
        (str(file), "audio"),
    ]
    seen = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        seen.append([of(*way) for way in ways])
    assert all(one != other for one, other in zip(*seen, strict=True))
    # The text of a request is no file, whatever it names; nor is a picture that is written out.
    texts = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        texts.append((of(str(file), "text"), of("data:image/png;base64," + "A" * 5000)))
    assert texts[0] == texts[1]


def test_a_pair_is_one_cluster_whichever_has_it_given() -> None:
    def pair(media: str | None, text: str | None) -> tuple[str, ...]:
        chat: Chat = [{"role": "user", "content": [{"type": "image", "image": "one.png"}]}]
        medium = Item("m", chat, False, "image", twin_id="t", cluster=media)
        return Requests.of([medium, item("t", cluster=text)]).cluster

    assert pair(None, None) == ("t", "t")
    assert pair("c", None) == ("c", "c")
    assert pair(None, "c") == ("c", "c")
    assert pair("c", "d") == ("c", "d")


def test_how_requests_are_batched_changes_nothing(random_organism: Adapter) -> None:
    requests = worded(random_organism, 3)
    one, other = (measure_states(random_organism, requests, batch_size=size) for size in (1, 7))
    torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4)
