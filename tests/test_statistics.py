"""Statistics of labelled items: counted once, merged, saved, and never half changed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from regap_interp._interrupt import whole
from regap_interp.artefact.files import digest, read_tensors, write_tensors
from regap_interp.statistics import Statistics

SITES: Any = [("resid_post", 3), ("final_norm", None)]


def states(n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, width, generator=generator, dtype=torch.float64) for width in (5, 4)]


def measured(**options: Any) -> Statistics:
    made = Statistics(SITES, **options)
    made.add("text/harmful", ["a", "b", "c"], states(3))
    made.add("image/harmful", ["c", "a", "b"], states(3, seed=1))
    made.add("text/benign", ["x", "y"], states(2, seed=2))
    return made


def test_every_site_and_label_has_its_own_moments() -> None:
    made = measured()
    assert made.labels == ("text/harmful", "image/harmful", "text/benign")
    assert made.count("text/benign") == 2
    torch.testing.assert_close(made["resid_post", 3, "text/harmful"].mean, states(3)[0].mean(0))
    torch.testing.assert_close(
        made["final_norm", None, "text/benign"].mean, states(2, 2)[1].mean(0)
    )


def test_an_item_counts_once_however_often_it_is_added() -> None:
    made, again = measured(covariance="full"), measured(covariance="full")
    again.add("text/harmful", ["b", "d"], states(2, seed=3))
    made.add("text/harmful", ["d"], [value[1:] for value in states(2, seed=3)])
    for site in SITES:
        for name, value in made[(*site, "text/harmful")].tensors().items():
            assert torch.equal(value, again[(*site, "text/harmful")].tensors()[name])
    assert made.count("text/harmful") == again.count("text/harmful") == 4


def test_twins_are_known_by_their_ids_whatever_the_order() -> None:
    made = measured()
    assert made.same_items("text/harmful", "image/harmful")
    assert not made.same_items("text/harmful", "text/benign")
    assert made.fingerprint("text/harmful") == made.fingerprint("image/harmful")
    assert made.fingerprint("text/harmful") != made.fingerprint("text/benign")
    assert made.holds("text/benign", "x") and not made.holds("text/benign", "a")


@pytest.mark.parametrize("covariance", [None, "full", 2])
def test_a_file_holds_all_of_it(tmp_path: Path, covariance: Any) -> None:
    made = measured(covariance=covariance, at=(-1, -2))
    made.model = "abc"
    made.save(tmp_path / "statistics.safetensors")
    loaded = Statistics.load(tmp_path / "statistics.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]
    for name in ("sites", "at", "covariance", "model", "labels"):
        assert getattr(loaded, name) == getattr(made, name)
    # Bit for bit, and going on from the file is going on without it.
    for part in (made, loaded):
        part.add("text/benign", ["y", "z"], states(2, seed=5))
    for label in made.labels:
        for site in SITES:
            before, after = made[(*site, label)], loaded[(*site, label)]
            assert before.count == after.count
            for name, value in before.tensors().items():
                assert torch.equal(value, after.tensors()[name])


def test_parts_of_several_processes_merge_into_what_one_would_have() -> None:
    first, second = Statistics(SITES), Statistics(SITES)
    first.add("text/harmful", ["a", "b", "c"], states(3))
    first.add("text/benign", ["x", "y"], states(2, seed=2))
    second.add("image/harmful", ["c", "a", "b"], states(3, seed=1))
    second.add("text/benign", ["z"], [value[:1] for value in states(2, seed=7)])
    merged, whole = first.merge(second), measured()
    whole.add("text/benign", ["z"], [value[:1] for value in states(2, seed=7)])
    for label in whole.labels:
        assert merged.fingerprint(label) == whole.fingerprint(label)
        for site in SITES:
            found, expected = merged[(*site, label)], whole[(*site, label)]
            torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(found.squares, expected.squares, rtol=1e-12, atol=1e-14)


def test_states_that_are_refused_leave_everything_as_it_was() -> None:
    made = measured()
    before = made["resid_post", 3, "text/benign"].tensors()
    good, bad = states(2, seed=4)
    with pytest.raises(ValueError, match="not finite in rows 1"):
        made.add("text/benign", ["u", "v"], [good, bad / torch.tensor([[1.0], [0.0]])])
    assert made.count("text/benign") == 2
    for name, value in made["resid_post", 3, "text/benign"].tensors().items():
        assert torch.equal(value, before[name])


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_waits_for_the_end_of_what_must_be_whole() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), whole():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_is_not_lost_where_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, whole():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("of the block")
    assert isinstance(raised.value.__context__, ValueError)


def test_statistics_of_unknown_and_known_models_do_not_mix() -> None:
    known, unknown = Statistics(SITES), measured()
    known.claim("abc", None)
    assert known.merge(unknown).model is None  # the first holds nothing
    known.add("text/other", ["a"], states(1))
    with pytest.raises(ValueError, match="model is 'abc' in one and None in the other"):
        known.merge(unknown)
    with pytest.raises(ValueError, match="not of which model"):
        unknown.claim("abc", None)


Tensors = dict[str, Tensor]


def rewritten(path: Path, change: Callable[[Tensors, dict[str, Any]], object]) -> Path:
    """The file with other contents and a checksum that fits them."""
    tensors, about = read_tensors(path)
    tensors = {name: value.clone() for name, value in tensors.items()}
    del about["sha256"]
    change(tensors, about)
    about["sha256"] = digest(tensors, about)
    write_tensors(path, tensors, about)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, a: t.pop("0.0.scatter"), "scatter is of shape None"),
        (lambda t, a: t.pop("0.0.mean"), "no mean"),
        (lambda t, a: t["0.0.mean"].fill_(float("nan")), "mean is .* expected finite"),
        (lambda t, a: t.update({"0.0.mean": t["0.0.mean"].half()}), "torch.float16"),
        (lambda t, a: t.update({"0.0.squares": torch.ones(7).double()}), r"shape \(7,\)"),
        (lambda t, a: t["0.0.squares"].neg_(), "squares are negative"),
        (lambda t, a: t.update({"0.items": t["0.items"].flip(0)}), "rising order"),
        (lambda t, a: t.update({"0.items": t["0.items"][:2].clone()}), "3 ids in rising order"),
        (lambda t, a: t.pop("1.items"), "ids in rising order"),
        (lambda t, a: t.update(more=torch.ones(1)), "that it does not name"),
        (lambda t, a: a.update(covariance=None), "that it does not name"),
        (lambda t, a: a.update(covariance="half"), "covariance is 'half'"),
        (lambda t, a: a.pop("sites"), "no 'sites'"),
        (lambda t, a: a.update(sites=[["nowhere", 3]]), "no site 'nowhere'"),
        (lambda t, a: a.update(at=["x"]), "at is"),
        (lambda t, a: a.update(model=3), "'model'"),
        (lambda t, a: a.update(labels=["x"]), "with counts"),
        (lambda t, a: a.update(format="else"), "expected 'regap_interp.statistics/1'"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_file_that_does_not_hang_together_is_refused(
    tmp_path: Path, change: Callable[[Tensors, dict[str, Any]], object], message: str
) -> None:
    measured(covariance="full").save(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        Statistics.load(rewritten(tmp_path / "s", change))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    measured().save(path)
    content = bytearray(path.read_bytes())
    content[-30] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or edited"):
        Statistics.load(path)
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match="damaged"):
        Statistics.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Statistics.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no folder"):
        measured().save(tmp_path / "nowhere" / "s")


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda made, _: Statistics([]), "different .site, layer. pairs"),
        (lambda made, _: Statistics(["resid_post"]), "'resid_post' is no pair"),
        (lambda made, _: Statistics([("nowhere", 3)]), "no site 'nowhere'"),
        (lambda made, _: Statistics(SITES, at="lst"), "at is 'lst'; give one of last"),
        (lambda made, _: made.holds("t", 5), "id is 5"),
        (lambda made, _: Statistics([*SITES, SITES[0]]), "different .site, layer. pairs"),
        (lambda made, _: made["resid_post", 3, "sound"], "no states of .* with label 'sound'"),
        (lambda made, _: made.add("t", ["a"], states(1)[:1]), "1 tensors for 2 sites"),
        (lambda made, _: made.add("t", ["a", "a"], states(2)), "more than once"),
        (lambda made, _: made.add("t", ["a"], states(2)), "expected 1 items of width 5"),
        (lambda made, _: made.merge(measured()), "3 item.s. with label 'text/harmful'"),
        (lambda made, _: made.merge(Statistics(SITES, at="image")), "at is 'last' in one"),
        (lambda made, path: Statistics.load(path), "holds tensors but no manifest"),
    ],
)
def test_refusals_say_what_was_given(
    tmp_path: Path, call: Callable[[Statistics, Path], object], message: str
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=message):
        call(measured(), other)
