"""Streaming captures: what they hold, that nothing finished is lost, and that memory is bounded."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_adapters import Adapter, Batch
from model_adapters.organism.world import draw_samples
from regap_interp import Graph, _bucketed, add
from regap_interp.capture import Labelled, capture, capture_statistics
from regap_interp.statistics import Statistics

SITES: Any = [("resid_post", 2), ("resid_post", 5)]
WORDS = ["name", "the", "kerol", "please", "tell", "me", "how", "to", "rate", "this", "now"]


def items(n: int, label: str = "text", start: int = 0) -> Iterator[Labelled]:
    for i in range(start, start + n):
        content = " ".join(WORDS[: 1 + i % len(WORDS)])
        yield Labelled(f"item-{i}", label, [{"role": "user", "content": content}])


def mixed() -> list[Labelled]:
    return [
        Labelled(sample.id, f"{setting}/{'harmful' if harmful else 'benign'}", sample.messages)
        for setting in ("text", "image", "audio")
        for harmful in (True, False)
        for sample in draw_samples("direction", setting, 3, seed=0, harmful=harmful)
    ]


def assert_same(found: Statistics, expected: Statistics, tolerance: float = 1e-12) -> None:
    assert set(found.labels) == set(expected.labels)
    for label in expected.labels:
        assert found.fingerprint(label) == expected.fingerprint(label)
        for site in expected.sites:
            ours, theirs = found[(*site, label)], expected[(*site, label)]
            assert ours.count == theirs.count
            for name, value in theirs.tensors().items():
                off = (ours.tensors()[name] - value).norm()
                assert off <= tolerance * max(1.0, float(value.norm())), name


def test_statistics_are_those_of_the_kept_states_in_two_passes(random_organism: Adapter) -> None:
    requests = mixed()
    into = Statistics(SITES, covariance="full")
    capture_statistics(random_organism, iter(requests), into=into)
    states = capture(random_organism, [item.chat for item in requests], sites=SITES)
    for label in {item.label for item in requests}:
        rows = [row for row, item in enumerate(requests) if item.label == label]
        for number, site in enumerate(SITES):
            kept, found = states[number, rows], into[(*site, label)]
            assert found.count == 3
            torch.testing.assert_close(found.mean, kept.mean(dim=0), rtol=1e-10, atol=1e-12)
            centred = kept - kept.mean(dim=0)
            torch.testing.assert_close(found.scatter, centred.T @ centred, rtol=1e-8, atol=1e-9)
    assert into.model == random_organism.fingerprint


def test_an_interrupted_capture_goes_on_where_it_stopped(
    random_organism: Adapter, tmp_path: Path
) -> None:
    whole, broken = (Statistics(SITES, covariance="full") for _ in range(2))
    capture_statistics(random_organism, items(7), into=whole, batch_size=1)

    def interrupt(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_statistics(random_organism, items(7), into=broken, batch_size=1, progress=interrupt)
    assert broken.count("text") == 4
    broken.save(tmp_path / "part.safetensors")

    resumed = Statistics.load(tmp_path / "part.safetensors")
    seen: list[int] = []
    capture_statistics(random_organism, items(7), into=resumed, batch_size=1, progress=seen.append)
    assert seen == [5, 6, 7]
    assert_same(resumed, whole)


def test_processes_that_share_the_items_merge_to_the_whole(random_organism: Adapter) -> None:
    whole, first, second = Statistics(SITES), Statistics(SITES), Statistics(SITES)
    capture_statistics(random_organism, items(9), into=whole, batch_size=1)
    capture_statistics(random_organism, items(4), into=first, batch_size=1)
    capture_statistics(random_organism, items(5, start=4), into=second, batch_size=1)
    assert_same(first.merge(second), whole)


def test_only_a_window_of_requests_is_read_ahead_and_let_go(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bucketed, "_WINDOW", 4)
    encode, encoded = Adapter.encode, []

    def remember(self: Adapter, requests: Any) -> Batch:
        batch = encode(self, requests)
        encoded.append(weakref.ref(batch))
        return batch

    monkeypatch.setattr(Adapter, "encode", remember)
    alive: list[int] = []
    into = Statistics(SITES)

    def counted() -> Iterator[Labelled]:
        for item in items(24):
            alive.append(sum(one() is not None for one in encoded))
            yield item

    capture_statistics(random_organism, counted(), into=into, batch_size=2)
    assert into.count("text") == len(encoded) == 24
    # A window, and the last pass of the one before.
    assert max(alive) <= 4 + 2


def test_the_media_of_a_window_are_let_go(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bucketed, "_WINDOW", 8)

    class Part(dict[str, Any]):
        """Can be watched, as a dict cannot."""

    made: list[weakref.ref[Part]] = []
    alive: list[int] = []

    def watched() -> Iterator[Labelled]:
        for item in items(8):
            part = Part(type="text", text=item.chat[0]["content"])
            made.append(weakref.ref(part))
            alive.append(sum(one() is not None for one in made))
            yield item._replace(chat=[{"role": "user", "content": [part]}])

    capture_statistics(random_organism, watched(), into=Statistics(SITES))
    # The one that was made, and the one that was read before it.
    assert len(made) == 8 and max(alive) <= 2


def shifted(strength: float = 1.0) -> Graph:
    vector = torch.linspace(-1, 1, 128, dtype=torch.float64)
    return Graph(add("resid_post", 1, vector, strength=strength))


def test_states_under_different_edits_do_not_mix(random_organism: Adapter, tmp_path: Path) -> None:
    bare, steered = Statistics(SITES), Statistics(SITES)
    capture_statistics(random_organism, items(3), into=bare)
    capture_statistics(random_organism, items(2), into=steered, graph=shifted())
    assert bare.edits is None and steered.edits is not None
    with pytest.raises(ValueError, match="are of the untouched model, the passes would be of"):
        capture_statistics(random_organism, items(6), into=bare, graph=shifted())
    with pytest.raises(ValueError, match="are of the model under edits"):
        capture_statistics(random_organism, items(6), into=steered, graph=shifted(2.0))
    with pytest.raises(ValueError, match="edits is None in one"):
        bare.merge(steered)
    # The same edits from a file on, installed instead of given.
    steered.save(tmp_path / "steered.safetensors")
    resumed = Statistics.load(tmp_path / "steered.safetensors")
    with shifted().on(random_organism):
        capture_statistics(random_organism, items(4), into=resumed)
        with pytest.raises(ValueError, match="are of the untouched model"):
            capture_statistics(random_organism, items(4), into=bare)
    assert resumed.count("text") == 4 and bare.count("text") == 3


def test_progress_arrives_though_all_is_counted_and_skipped_items_count(
    random_organism: Adapter,
) -> None:
    into = Statistics(SITES)
    capture_statistics(random_organism, items(3), into=into)
    seen: list[int] = []
    capture_statistics(random_organism, items(3), into=into, progress=seen.append)
    assert seen == [3]
    new_first = [*items(2, start=3), *items(3)]
    capture_statistics(random_organism, new_first, into=into, progress=seen.append)
    assert seen[-1] == 5


def test_an_id_given_twice_is_refused_beyond_a_window_too(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bucketed, "_WINDOW", 4)
    into = Statistics(SITES)
    with pytest.raises(ValueError, match="'item-0' with label 'text' comes twice"):
        capture_statistics(random_organism, [*items(6), *items(1)], into=into)
    assert into.count("text") == 4


@pytest.mark.usefixtures("as_users_run_it")
def test_what_is_no_labelled_item_is_named(random_organism: Adapter) -> None:
    plain: Any = [("id", "text", [{"role": "user", "content": "please"}])]
    with pytest.raises(ValueError, match="holds a tuple; give Labelled"):
        capture_statistics(random_organism, plain, into=Statistics(SITES))
    numbered: Any = [next(items(1))._replace(id=5)]
    with pytest.raises(ValueError, match="id is 5"):
        capture_statistics(random_organism, numbered, into=Statistics(SITES))


def test_statistics_of_one_model_take_no_states_of_another(random_organism: Adapter) -> None:
    into = Statistics(SITES)
    into.model = "another"
    with pytest.raises(ValueError, match="fingerprint another"):
        capture_statistics(random_organism, items(1), into=into)


def test_the_same_item_twice_and_bad_requests_are_named(random_organism: Adapter) -> None:
    with pytest.raises(ValueError, match="'item-0' with label 'text' comes twice"):
        capture_statistics(random_organism, [*items(1), *items(1)], into=Statistics(SITES))
    bad = Labelled("odd", "text", [{"role": "user", "content": ""}])
    with pytest.raises(ValueError, match=r"item 'odd' \(text\): "):
        capture_statistics(random_organism, [*items(1), bad], into=Statistics(SITES))
