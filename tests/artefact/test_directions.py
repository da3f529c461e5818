"""Files of directions: an exact round trip, and no use on another model, site or template."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_adapters import Adapter
from model_adapters.organism.build import build_model, build_processor, build_tokenizer
from regap_interp import Direction, orthogonalise
from regap_interp.artefact import (
    TOWARDS_HARMFUL,
    ArtefactError,
    Directions,
    Manifest,
    MismatchError,
    Recipe,
    load_directions,
)
from regap_interp.directions import Origin


def test_a_saved_file_is_read_back_bit_for_bit(
    directions: Directions, random_organism: Adapter, tmp_path: Path
) -> None:
    path = tmp_path / "directions.safetensors"
    directions.save(path)
    loaded = load_directions(path, random_organism)
    assert loaded.manifest == directions.manifest
    assert list(loaded) == sorted(directions) and len(loaded) == 3
    for name in directions:
        assert list(loaded[name]) == list(directions[name])
        for layer, one in directions[name].items():
            again = loaded[name][layer]
            assert torch.equal(again.vector, one.vector) and again.vector.dtype == torch.float64
            assert torch.equal(again.centre, one.centre)
            assert (again.n_towards, again.n_from) == (one.n_towards, one.n_from)
            position = directions.manifest.recipes[name].position
            here = (random_organism.fingerprint, "resid_post", layer, position)
            assert again.origin == Origin(*here)


def test_the_same_directions_give_the_same_bytes(directions: Directions, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    directions.save(first)
    Directions.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_a_file_is_readable_without_torch(directions: Directions, tmp_path: Path) -> None:
    path = tmp_path / "directions.safetensors"
    directions.save(path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    about = json.loads(header["__metadata__"]["regap_interp"])
    assert about["format"] == "regap_interp.directions" and about["schema"] == 1
    assert about["manifest"]["recipes"]["refusal"]["sign"] == "points from harmless to harmful"
    assert about["sets"]["refusal"]["7"]["norm"] == directions.refusal(7).norm
    place = header["refusal/7/vector"]
    start, stop = (8 + length + offset for offset in place["data_offsets"])
    found = np.frombuffer(raw[start:stop], "<f8")
    assert place["dtype"] == "F64" and np.array_equal(found, directions.refusal(7).vector.numpy())


def test_the_correction_is_the_drift_without_its_refusal_part(directions: Directions) -> None:
    expected = orthogonalise(directions.drift("image", 3), directions.refusal(3))
    found = directions.correction("image", 3)
    assert torch.equal(found.vector, expected.vector)
    assert abs(float(found.unit @ directions.refusal(3).unit)) < 1e-15
    assert found.origin == directions.refusal(3).origin


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.refusal(5), "'refusal' has no layer 5; it has 3, 7"),
        (lambda d: d.drift("audio", 3), "no set 'drift/audio'; there are"),
        (lambda d: d.correction("image", 5), "has no layer 5"),
        (lambda d: d["mood"], "no set 'mood'"),
    ],
)
def test_what_is_not_there_is_named(directions: Directions, ask: Any, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        ask(directions)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    directions: Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "directions.safetensors"
    directions.save(path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        directions.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(directions: Directions, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no folder"):
        directions.save(tmp_path / "nowhere" / "file")


# --- other models ---


@pytest.fixture(scope="module")
def other_organism() -> Adapter:
    """Same architecture, other weights, and a template that ends in another way."""
    import model_adapters

    processor = build_processor()
    processor.tokenizer.chat_template += " "
    return model_adapters.load(build_model(build_tokenizer(), seed=1).eval(), processor=processor)


def test_another_model_and_template_are_refused_with_every_difference(
    directions: Directions, other_organism: Adapter, tmp_path: Path
) -> None:
    path = tmp_path / "directions.safetensors"
    directions.save(path)
    with pytest.raises(MismatchError) as refused:
        load_directions(path, other_organism, site="resid_pre")
    text = str(refused.value)
    assert f"made with {directions.manifest.fingerprint}" in text
    assert f"given {other_organism.fingerprint}" in text
    assert "chat template (sha256): made with" in text
    assert "site: made with resid_post, given resid_pre" in text
    assert "measure them again" in text
    assert "width" not in text and "layers:" not in text


def test_another_size_is_named(directions: Directions, random_organism: Adapter) -> None:
    manifest = dataclasses.replace(directions.manifest, n_layers=24, d_model=512)
    with pytest.raises(MismatchError, match=r"layers: made with 24, given 12\n  width: made with"):
        manifest.check(random_organism)


def test_the_same_model_under_another_name_is_taken(
    directions: Directions, random_organism: Adapter
) -> None:
    moved = dataclasses.replace(directions.manifest, model_id="/elsewhere")
    Directions(moved, {name: directions[name] for name in directions}).check(random_organism)


@pytest.mark.parametrize(
    ("change", "message", "absent"),
    [
        (lambda m: m.lm_head.weight.data.add_(0.01), "the weights differ", "float16"),
        (lambda m: m.half(), "the model is in float16", "config .sha256."),
        (lambda m: setattr(m.config, "extra", 3), "config .sha256.: made with", "weights differ"),
    ],
)
def test_what_differs_of_a_model_is_told(
    directions: Directions, change: Any, message: str, absent: str
) -> None:
    import model_adapters

    model = build_model(build_tokenizer(), seed=0).eval()
    adapter = model_adapters.load(model, processor=build_processor())
    directions.check(adapter)
    change(model)
    with pytest.raises(MismatchError, match=message) as refused:
        directions.check(adapter)
    assert re.search(absent, str(refused.value)) is None


# --- directions that do not belong together ---


def rebuilt(directions: Directions, name: str, layers: dict[int, Direction]) -> Directions:
    return Directions(
        directions.manifest, {**{one: directions[one] for one in directions}, name: layers}
    )


@pytest.mark.usefixtures("as_users_run_it")
def test_what_does_not_fit_the_manifest_is_refused(directions: Directions) -> None:
    good = directions.refusal(7)
    narrow = Direction(torch.ones(4).double(), torch.zeros(4).double(), 1, 1)
    elsewhere = dataclasses.replace(good, origin=Origin("another", "resid_post", 7))
    assert good.origin is not None
    mean = dataclasses.replace(good.origin, position="prompt")
    steered = dataclasses.replace(good.origin, edits="abc")
    cases: list[tuple[Any, str]] = [
        ({}, "has no layers"),
        ({12: good}, "layers 0 to 11"),
        ({7: narrow}, "width 4, the model 128"),
        ({6: good}, "was measured at"),
        ({7: elsewhere}, "was measured at"),
        ({7: dataclasses.replace(good, origin=mean)}, "position='prompt'"),
        ({7: dataclasses.replace(good, origin=steered)}, "edits='abc'.*take the origin off"),
        ({"7": good}, "layers 0 to 11"),
        ({True: good}, "layers 0 to 11"),
    ]
    for layers, message in cases:
        with pytest.raises(ArtefactError, match=message):
            rebuilt(directions, "refusal", layers)
    last = dataclasses.replace(good, origin=dataclasses.replace(good.origin, position="-1"))
    assert rebuilt(directions, "refusal", {7: last}).refusal(7).origin == good.origin
    with pytest.raises(ArtefactError, match="every set needs a recipe"):
        rebuilt(directions, "mood", {7: good})


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"refusal": Recipe(sign="points from harmful to harmless")}, "turn the directions round"),
        ({"../x": Recipe(sign="any")}, "no name of a set"),
    ],
)
def test_names_and_signs_are_held_to(
    random_organism: Adapter, recipes: dict[str, Recipe], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        Manifest.of(random_organism, recipes)
    with pytest.raises(ArtefactError, match="must be one of"):
        Manifest.of(random_organism, {}, site="logits")


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {"x": object()}},
        {"options": {"x": float("nan")}},
        {"options": {"x": (1, 2)}},
        {"data": "no hash"},
        {"sign": " "},
    ],
)
def test_recipes_hold_only_what_a_file_can_hold(fields: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError):
        Recipe(**{"sign": TOWARDS_HARMFUL, **fields})


# --- reports ---


def test_the_table_has_one_row_for_each_direction(directions: Directions) -> None:
    rows = directions.table()
    assert [(row["set"], row["layer"]) for row in rows] == [
        ("refusal", 3), ("refusal", 7), ("drift/image", 3), ("drift/image", 7), ("tone", 0)
    ]  # fmt: skip
    assert rows[0]["cosine_with_refusal"] == pytest.approx(1)
    assert rows[4]["cosine_with_refusal"] is None
    assert rows[1]["norm"] == directions.refusal(7).norm


def test_html_shows_no_markup_of_the_file(directions: Directions) -> None:
    manifest = dataclasses.replace(directions.manifest, model_id="<img/onerror=x>")
    named = Directions(manifest, {name: directions[name] for name in directions})
    page = named._repr_html_()
    assert "<img" not in page and "&lt;img/onerror=x&gt;" in page
    assert page.count("<tr>") == 6


def test_vectors_can_be_exported_plain(directions: Directions, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    directions.to_safetensors(tmp_path / "plain.safetensors")
    plain = load_file(tmp_path / "plain.safetensors")
    assert sorted(plain) == ["drift/image.3", "drift/image.7", "refusal.3", "refusal.7", "tone.0"]
    assert torch.equal(plain["refusal.7"], directions.refusal(7).vector)


def test_callers_cannot_change_what_is_saved(directions: Directions) -> None:
    given = copy.deepcopy(directions["tone"][0])
    kept = Directions(
        dataclasses.replace(
            directions.manifest, recipes={"tone": directions.manifest.recipes["tone"]}
        ),
        {"tone": {0: given}},
    )
    given.vector.zero_()
    assert kept["tone"][0].norm > 0
    with pytest.raises(TypeError):
        kept["tone"][1] = given  # type: ignore[index]
