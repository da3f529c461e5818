"""Hashes that change with what a direction depends on, and with nothing else."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model_adapters import Adapter
from regap_interp.artefact import data_fingerprint, provenance


def picture(value: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value)


def palette(first: int) -> Image.Image:
    image = picture(0, mode="P")
    image.putpalette([first, 0, 0])
    return image


def test_the_order_of_items_does_not_matter() -> None:
    assert data_fingerprint({"a": "x", "b": "y"}) == data_fingerprint([("b", "y"), ("a", "x")])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x", "y"),
        ("1", 1),
        (1, 1.0),
        (True, 1),
        (None, "None"),
        ("x", b"x"),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": "b"}, ["a", "b"]),
        (np.zeros(4, "f4"), np.zeros(2, "f8")),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2).bfloat16(), torch.ones(2).bfloat16()),
        (picture(0), picture(1)),
        (picture(0, (2, 8)), picture(0, (8, 2))),
        (palette(10), palette(20)),
    ],
)
def test_different_contents_have_different_fingerprints(one: Any, other: Any) -> None:
    assert data_fingerprint({"id": one}) != data_fingerprint({"id": other})
    assert data_fingerprint({"id": one}) == data_fingerprint({"id": copy.deepcopy(one)})


def test_ids_count(tmp_path: Path) -> None:
    assert data_fingerprint({"a": "x", "b": "y"}) != data_fingerprint({"a": "y", "b": "x"})
    assert data_fingerprint({"ab": "c"}) != data_fingerprint({"a": "bc"})


def test_files_count_by_their_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    first, same, other = (data_fingerprint({"id": tmp_path / name}) for name in "abc")
    assert first == same != other


def test_what_has_no_fixed_content_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hash a object"):
        data_fingerprint({"a": object()})
    with pytest.raises(ValueError, match="cannot hash a ndarray"):
        data_fingerprint({"a": np.array([object()])})
    with pytest.raises(ValueError, match="2 items with 1 different ids"):
        data_fingerprint([("a", 1), ("a", 2)])
    with pytest.raises(ValueError, match="at least one item"):
        data_fingerprint({})


def test_the_config_hash_is_of_the_architecture(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = provenance.config_hash(random_organism)
    config = random_organism.module.config
    monkeypatch.setattr(config, "_name_or_path", "/elsewhere")
    assert provenance.config_hash(random_organism) == before
    monkeypatch.setattr(config.get_text_config(), "rms_norm_eps", 0.5)
    assert provenance.config_hash(random_organism) != before


def test_the_template_is_that_of_the_processor_or_else_the_tokenizer(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = provenance.template_hash(random_organism)
    assert found is not None and len(found) == 64
    monkeypatch.setattr(random_organism, "processor", None)
    assert provenance.template_hash(random_organism) == found
    monkeypatch.setattr(random_organism, "tokenizer", None)
    assert provenance.template_hash(random_organism) is None
    assert provenance.processor_name(random_organism) is None
