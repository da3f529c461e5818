"""Bundles: what they refuse to be, and files that give back exactly what was saved."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from regap_interp.adaptive.files import load_bundle, save_bundle
from regap_interp.adaptive.regap import ReGap
from regap_interp.artefact.errors import ArtefactError, MismatchError


def same(one, other):
    """Equal to the last bit, fields of fields included."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_a_file_gives_back_the_same_bundle(random_organism, make_bundle, tmp_path):
    bundle = make_bundle("audio", signal="absolute", fallback="weak", threshold=0.1 + 0.2)
    save_bundle(bundle, tmp_path / "a.safetensors")
    loaded = load_bundle(tmp_path / "a.safetensors", random_organism)
    assert same(bundle, loaded)
    save_bundle(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_another_model_is_refused(random_organism, make_bundle, tmp_path):
    bundle = make_bundle("audio")
    other = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, fingerprint="1" * 64)
    )
    save_bundle(other, tmp_path / "a.safetensors")
    with pytest.raises(MismatchError, match="weights"):
        load_bundle(tmp_path / "a.safetensors", random_organism)
    with pytest.raises(MismatchError, match="weights"):
        ReGap([other]).on(random_organism)


def test_other_files_are_refused(make_bundle, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtefactError, match="manifest"):
        load_bundle(tmp_path / "x.safetensors")
    with pytest.raises(ArtefactError, match="no bundle"):
        ReGap.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"modality": "text"}, "expected one of image"),
        ({"diagnostic": 4}, "later layer"),
        ({"weak": 0.0}, "0 < weak"),
        ({"weak": 3.0}, "weak <= strong"),
        ({"signal": "gain"}, "expected one of paired_gain"),
        ({"fallback": "strong"}, "'weak' or 'none'"),
    ],
)
def test_impossible_choices_are_refused(make_bundle, change, complaint, as_users_run_it):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(make_bundle("image"), **change)


def test_a_bundle_tells_its_choices_and_reasons(make_bundle):
    text = str(make_bundle("image"))
    assert "layer 4" in text and "paired_gain" in text and "given" in text
    assert "crs_gain" in str(make_bundle("image").calibration.sweeps["layer"])
