"""Files that lie: each is refused with words that say what is wrong."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regap_interp.artefact import ArtefactError, Directions
from regap_interp.artefact.files import digest

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def saved(directions: Directions, tmp_path: Path) -> Path:
    path = tmp_path / "directions.safetensors"
    directions.save(path)
    return path


def about_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about: dict[str, Any] = json.loads(header["__metadata__"]["regap_interp"])
    return about


def rewritten(path: Path, about: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """The file with another manifest or other tensors."""
    tensors = load_file(path) if tensors is None else tensors
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(tensors, path, metadata={"regap_interp": text})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("format"), "no 'format'"),
        (lambda a: a.update(format="else"), "of format 'else'"),
        (lambda a: a.update(schema=2), "schema version 2"),
        (lambda a: a.update(schema=True), "'schema' .* is 'True', expected int"),
        (lambda a: a.pop("manifest"), "the manifest is 'None', expected dict"),
        (lambda a: a.update(manifest=[]), "the manifest is '\\[\\]', expected dict"),
        (lambda a: a["manifest"].pop("fingerprint"), "no 'fingerprint'"),
        (lambda a: a["manifest"].update(d_model="128"), "'d_model' .* expected int"),
        (lambda a: a["manifest"].update(d_model=64), "width 128, the model 64"),
        (lambda a: a["manifest"].update(n_layers=4), "layers 0 to 3"),
        (lambda a: a["manifest"].update(site="resid"), "site is 'resid'"),
        (lambda a: a["manifest"].update(versions={"torch": 2}), "version of torch"),
        (lambda a: a["manifest"]["recipes"].update(refusal=3), "recipe 'refusal' is '3'"),
        (lambda a: a["manifest"]["recipes"].pop("tone"), "every set needs a recipe"),
        (lambda a: a["manifest"]["recipes"]["refusal"].update(seeds=["x"]), "seed of recipe"),
        (lambda a: a["manifest"]["recipes"]["refusal"].update(sign="the other"), "turn the"),
        (lambda a: a["sets"].pop("tone"), "tensors that its manifest does not name"),
        (lambda a: a["sets"]["tone"].update({"1": a["sets"]["tone"]["0"]}), "has no vector"),
        (lambda a: a["sets"]["tone"].update({"-1": {}}), "a layer is a number"),
        (lambda a: a["sets"]["tone"].update({"9" * 5000: {}}), "a layer is a number"),
        (lambda a: a["sets"]["tone"]["0"].update(norm=1.0), "the manifest says 1.0"),
        (lambda a: a["sets"]["tone"]["0"].update(n_from=None), "'n_from'"),
        (lambda a: a.update(sets=7), "'sets' .* is '7', expected dict"),
    ],
)
def test_a_false_manifest_is_refused(saved: Path, change: Change, message: str) -> None:
    about = about_of(saved)
    change(about)
    del about["sha256"]
    about["sha256"] = digest(load_file(saved), about)
    with pytest.raises(ArtefactError, match=message):
        Directions.load(rewritten(saved, about))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["manifest"]["recipes"]["refusal"].update(position="-1"),
        lambda a: a["sets"]["tone"]["0"].update(n_towards=99),
        lambda a: a["manifest"].update(fingerprint="0" * 64),
    ],
)
def test_an_edited_manifest_is_refused(saved: Path, change: Change) -> None:
    about = about_of(saved)
    change(about)
    with pytest.raises(ArtefactError, match="damaged or edited"):
        Directions.load(rewritten(saved, about))
    del about["sha256"]
    with pytest.raises(ArtefactError, match="no 'sha256'"):
        Directions.load(rewritten(saved, about))


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[" * 100_000, '{"format": NaN}', '{"schema": Infinity}', "null", "1"],
)
def test_a_manifest_that_is_no_json_object_is_refused(saved: Path, text: str) -> None:
    with pytest.raises(ArtefactError):
        Directions.load(rewritten(saved, text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("tone/0/centre"), "has no centre"),
        (lambda t: t["tone/0/vector"].add_(1e-12), "not those it was saved with"),
        (lambda t: t["tone/0/vector"].fill_(float("nan")), "not finite"),
        (lambda t: t["tone/0/vector"].zero_(), "direction is zero"),
        (lambda t: t.update({"tone/0/vector": torch.ones(5).double()}), "shape"),
        (lambda t: t.update({"tone/0/vector": torch.ones(128).bfloat16()}), "torch.float64"),
        (lambda t: t.update({"tone/0/vector": torch.ones(1, 128).double()}), "torch.float64"),
        (lambda t: t.update({"more": torch.ones(1).double()}), "does not name"),
        (lambda t: t.clear(), "has no vector"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_false_tensors_are_refused(saved: Path, change: Change, message: str) -> None:
    tensors, about = load_file(saved), about_of(saved)
    change(tensors)
    with pytest.raises(ArtefactError, match=message):
        Directions.load(rewritten(saved, about, tensors))


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"hello, this is no tensor file",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100 * 2**20) + b"{}",
        header(b"[]"),
        header(b'{"__metadata__": 3}'),
        header(b'{"__metadata__": {"regap_interp": 3}}'),
        header(b'{"x": {"dtype": "F64", "shape": [9], "data_offsets": [0, 72]}}'),
        header(b'{"__metadata__": {"regap_interp": "{}"}, "x": {"dtype": "F64", "shape": [9], '
               b'"data_offsets": [0, 72]}}'),
        header(b"[" * 200_000),
        header(b"\xff\xfe"),
        pickle.dumps({"refusal": [1.0]}),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ArtefactError):
        Directions.load(path)


def test_a_cut_file_and_no_file_are_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-8])
    with pytest.raises(ArtefactError, match="damaged"):
        Directions.load(saved)
    with pytest.raises(ArtefactError, match="cannot be read"):
        Directions.load(tmp_path / "nothing")
    with pytest.raises(ArtefactError, match="cannot be read"):
        Directions.load(tmp_path)
