"""Directions of other programs: the same vectors, at the place those programs mean."""

import builtins
import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_adapters import Adapter
from regap_interp.artefact import (
    TOWARDS_HARMFUL,
    TOWARDS_MEDIA,
    ArtefactError,
    Directions,
    at_layer_outputs,
    import_refusal_direction,
    import_repeng,
)
from regap_interp.directions import Origin

gguf = pytest.importorskip("gguf")

WIDTH, LAYERS = 128, 12


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- refusal_direction ---

HARMFUL = ("name the kerol please", "what is the kerol")
HARMLESS = ("rate the kerol now", "tell me how to name this")


def by_their_hooks(adapter: Adapter, texts: tuple[str, ...], n_positions: int) -> Tensor:
    """Mean block inputs at the last positions, collected as the repository collects them."""
    means = torch.zeros(n_positions, LAYERS, WIDTH, dtype=torch.float64)

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            means[:, layer] += args[0][:, -n_positions:].double().sum(0) / len(texts)

        return hook

    blocks = adapter.module.get_submodule(adapter.layout.layers)
    handles = [block.register_forward_pre_hook(keep(i)) for i, block in enumerate(blocks)]
    try:
        for text in texts:
            batch = adapter.encode([[{"role": "user", "content": text}]])
            with torch.no_grad():
                adapter.module(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return means


def by_the_adapter(adapter: Adapter, texts: tuple[str, ...], layer: int, position: int) -> Tensor:
    states = []
    for text in texts:
        with adapter.trace(adapter.encode([[{"role": "user", "content": text}]])):
            state = adapter.resid_pre[layer][0, position].double().save()
        states.append(state)
    return torch.stack(states).mean(0)


@pytest.fixture
def mean_diffs(random_organism: Adapter, tmp_path: Path) -> Path:
    """A file as `generate_directions` of the repository leaves it, three positions deep."""
    towards, origin = (by_their_hooks(random_organism, t, 3) for t in (HARMFUL, HARMLESS))
    path = tmp_path / "mean_diffs.pt"
    torch.save(towards - origin, path)
    return path


def test_their_layer_is_the_input_of_that_layer(random_organism: Adapter, mean_diffs: Path) -> None:
    found = import_refusal_direction(mean_diffs, random_organism)
    assert list(found) == ["refusal/-3", "refusal/-2", "refusal/-1"]
    one = found["refusal/-2"][5]
    expected = by_the_adapter(random_organism, HARMFUL, 5, -2) - by_the_adapter(
        random_organism, HARMLESS, 5, -2
    )
    assert (one.vector - expected).norm() <= 1e-6 * expected.norm()
    assert one.origin == Origin(random_organism.fingerprint, "resid_pre", 5, "-2")
    recipe = found.manifest.recipes["refusal/-2"]
    assert (recipe.sign, recipe.position) == (TOWARDS_HARMFUL, "-2")
    assert one.centre.count_nonzero() == 0 and one.n_towards == 0


def test_layers_without_a_difference_are_left_out_and_named(
    random_organism: Adapter, mean_diffs: Path
) -> None:
    # The template's tokens are the same in every prompt, so their embeddings are too.
    found = import_refusal_direction(mean_diffs, random_organism)
    assert list(found["refusal/-1"]) == list(range(1, LAYERS))
    assert found.manifest.recipes["refusal/-1"].options["no difference in layers"] == [0]


def test_the_input_of_a_layer_is_the_output_of_the_one_before(
    random_organism: Adapter, mean_diffs: Path
) -> None:
    found = import_refusal_direction(mean_diffs, random_organism)
    moved = at_layer_outputs(found, random_organism)
    one = moved["refusal/-1"][4]
    assert torch.equal(one.vector, found["refusal/-1"][5].vector)
    assert one.origin == Origin(random_organism.fingerprint, "resid_post", 4, "-1")
    moved.check(random_organism, site="resid_post")
    with pytest.raises(ArtefactError, match="site: made with resid_post, given resid_pre"):
        at_layer_outputs(moved, random_organism)
    first = Directions(
        found.manifest,
        {name: {0: dataclasses.replace(found[name][1], origin=None)} for name in found},
    )
    with pytest.raises(ArtefactError, match="the input of layers 0 is not"):
        at_layer_outputs(first, random_organism)


@pytest.mark.parametrize("given", ["beside", "file", "mapping"])
def test_a_single_direction_needs_its_position_and_layer(
    random_organism: Adapter, tmp_path: Path, given: str
) -> None:
    path, stored = tmp_path / "direction.pt", vectors(WIDTH)
    torch.save(stored, path)
    fields = {"pos": -5, "layer": 6}
    name = "direction_metadata.json" if given == "beside" else "other.json"
    (tmp_path / name).write_text(json.dumps(fields))
    metadata = {"beside": None, "file": tmp_path / name, "mapping": fields}[given]
    found = import_refusal_direction(path, random_organism, metadata=metadata)
    assert torch.equal(found.refusal(6).vector, stored)
    assert found.manifest.recipes["refusal"].position == "-5"
    found.save(tmp_path / "ours.safetensors")
    assert torch.equal(Directions.load(tmp_path / "ours.safetensors").refusal(6).vector, stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected {"),
        ([], "expected {"),
        ({"pos": 1, "layer": 6}, "negative"),
        ({"pos": -1, "layer": True}, "expected {"),
        ({"pos": -1, "layer": "6"}, "expected {"),
        ({"pos": -1, "layer": 12}, "names layer 12; .* 0 to 11"),
        ({"pos": -1, "layer": -1}, "names layer -1"),
    ],
)
def test_false_metadata_is_refused(
    random_organism: Adapter, tmp_path: Path, fields: Any, message: str
) -> None:
    torch.save(vectors(WIDTH), tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps(fields))
    with pytest.raises(ArtefactError, match=message):
        import_refusal_direction(tmp_path / "direction.pt", random_organism)


def test_missing_metadata_is_asked_for(random_organism: Adapter, tmp_path: Path) -> None:
    torch.save(vectors(WIDTH), tmp_path / "direction.pt")
    with pytest.raises(ArtefactError, match="needs its position and layer"):
        import_refusal_direction(tmp_path / "direction.pt", random_organism)


class Intruder:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (builtins.open, (str(self.target), "w"))


def test_code_in_a_file_does_not_run(random_organism: Adapter, tmp_path: Path) -> None:
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))):
        save(Intruder(tmp_path / "written"), tmp_path / "direction.pt")
        with pytest.raises(ArtefactError):
            import_refusal_direction(tmp_path / "direction.pt", random_organism)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (vectors(64), r"shape \(64,\); expected \[128\]"),
        (vectors(3, 11, WIDTH), r"shape \(3, 11, 128\); expected .* 12, 128\]"),
        (vectors(0, LAYERS, WIDTH), r"shape \(0, 12, 128\)"),
        # A few bytes that would be gigabytes.
        (torch.zeros(1).expand(10**13), r"shape \(10000000000000,\)"),
        (torch.zeros(1).expand(10**7, LAYERS, WIDTH), r"shape \(10000000, 12, 128\)"),
        (vectors(WIDTH).to_sparse(), "sparse, nested or without values"),
        (torch.empty(WIDTH, device="meta"), "sparse, nested or without values"),
        (torch.zeros(2, LAYERS, WIDTH), "position -2 .* is zero at every layer"),
        (vectors(3, WIDTH), "has shape"),
        (vectors(WIDTH).long(), "expected one float tensor"),
        ({"direction": vectors(WIDTH)}, "holds a dict"),
        (torch.full((WIDTH,), float("nan")), "layer 6 .* not finite"),
        (torch.zeros(WIDTH), "layer 6 .* is zero"),
    ],
)
def test_false_tensors_are_refused(
    random_organism: Adapter, tmp_path: Path, stored: Any, message: str
) -> None:
    path = tmp_path / "file.pt"
    torch.save(stored, path)
    single = isinstance(stored, dict) or stored.ndim == 1
    metadata = {"pos": -1, "layer": 6} if single else None
    with pytest.raises(ArtefactError, match=message):
        import_refusal_direction(path, random_organism, metadata=metadata)


def test_one_position_of_several_is_the_set_refusal(
    random_organism: Adapter, mean_diffs: Path
) -> None:
    every = import_refusal_direction(mean_diffs, random_organism)
    found = import_refusal_direction(mean_diffs, random_organism, position=-2)
    assert list(found) == ["refusal"]
    assert torch.equal(found.refusal(5).vector, every["refusal/-2"][5].vector)
    with pytest.raises(ArtefactError, match=r"position is -4; .* has -3, -2, -1"):
        import_refusal_direction(mean_diffs, random_organism, position=-4)


# --- GGUF ---


def write_as_repeng(path: Path, stored: dict[int, Tensor], **fields: Any) -> Path:
    """The calls that repeng's `export_gguf` makes."""
    fields = {"arch": "controlvector", "hint": "qwen2_5_omni_thinker", "count": len(stored)} | (
        fields
    )
    writer = gguf.GGUFWriter(path, fields["arch"])
    writer.add_string("controlvector.model_hint", fields["hint"])
    writer.add_uint32("controlvector.layer_count", fields["count"])
    for layer, vector in stored.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def stored() -> dict[int, Tensor]:
    """What repeng trains: every layer but the first, last layer first."""
    return {layer: vectors(WIDTH, seed=layer).float() for layer in range(LAYERS - 1, 0, -1)}


def test_a_repeng_file_is_read_at_the_output_of_the_same_layers(
    random_organism: Adapter, tmp_path: Path, stored: dict[int, Tensor]
) -> None:
    path = write_as_repeng(tmp_path / "vector.gguf", stored)
    found = import_repeng(path, random_organism, name="drift/image", sign=TOWARDS_MEDIA)
    assert list(found["drift/image"]) == list(range(1, LAYERS))
    for layer, vector in stored.items():
        one = found.drift("image", layer)
        assert torch.equal(one.vector, vector.double())
        assert one.origin == Origin(random_organism.fingerprint, "resid_post", layer)


def test_it_steers_where_repeng_would(
    random_organism: Adapter, tmp_path: Path, stored: dict[int, Tensor]
) -> None:
    """repeng wraps block N and adds `direction.N` to what it returns."""
    adapter, path = random_organism, write_as_repeng(tmp_path / "vector.gguf", stored)
    one = import_repeng(path, adapter)["control"][5]
    batch = adapter.encode([[{"role": "user", "content": HARMFUL[0]}]])
    block = adapter.module.get_submodule(adapter.layout.layers)[5]
    handle = block.register_forward_hook(lambda module, args, out: out + stored[5])
    try:
        with torch.no_grad():
            expected = adapter.module(**batch.inputs).logits
    finally:
        handle.remove()
    assert one.origin is not None and one.origin.layer is not None
    with adapter.trace(batch):
        at = one.origin.layer
        adapter.resid_post[at] = adapter.resid_post[at] + one.vector.float()
        logits = adapter.logits.save()
    assert torch.equal(logits, expected)


def test_gguf_goes_there_and_back(
    random_organism: Adapter, tmp_path: Path, stored: dict[int, Tensor]
) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    found = import_repeng(write_as_repeng(first, stored), random_organism)
    found.to_gguf(second, "control")
    again = import_repeng(second, random_organism)
    assert all(torch.equal(again["control"][i].vector, v.double()) for i, v in stored.items())
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_an_exported_file_is_what_repeng_and_llama_cpp_read(
    directions: Directions, tmp_path: Path
) -> None:
    path = tmp_path / "vector.gguf"
    directions.to_gguf(path, "refusal")
    reader = gguf.GGUFReader(path)
    fields = {name: reader.get_field(name).contents() for name in reader.fields if "." in name}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2_5_omni_thinker"
    assert fields["controlvector.layer_count"] == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.3", "direction.7"]
    for tensor, layer in zip(reader.tensors, (3, 7), strict=True):
        assert tensor.tensor_type.name == "F32" and tensor.shape.tolist() == [WIDTH]
        assert np.array_equal(tensor.data, directions.refusal(layer).vector.float().numpy())


def test_only_what_control_vectors_can_say_is_exported(
    directions: Directions, random_organism: Adapter, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="which llama"):
        directions.to_gguf(tmp_path / "x.gguf", "tone")
    torch.save(vectors(WIDTH), tmp_path / "direction.pt")
    before = import_refusal_direction(
        tmp_path / "direction.pt", random_organism, metadata={"pos": -1, "layer": 6}
    )
    with pytest.raises(ArtefactError, match="these directions are of resid_pre"):
        before.to_gguf(tmp_path / "x.gguf", "refusal")
    assert not (tmp_path / "x.gguf").exists()
    at_layer_outputs(before, random_organism).to_gguf(tmp_path / "x.gguf", "refusal")
    assert list(import_repeng(tmp_path / "x.gguf", random_organism)["control"]) == [5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "llama"}, "of architecture 'llama', expected 'controlvector'"),
        ({"hint": "mistral"}, "made for a model of type 'mistral'.*give model_hint='mistral'"),
        ({"hint": ""}, "does not say what kind of model"),
        ({"count": 12}, "announces 12 layers and holds 11"),
    ],
)
def test_a_file_for_something_else_is_refused(
    random_organism: Adapter,
    tmp_path: Path,
    stored: dict[int, Tensor],
    fields: dict[str, Any],
    message: str,
) -> None:
    path = write_as_repeng(tmp_path / "vector.gguf", stored, **fields)
    with pytest.raises(ArtefactError, match=message):
        import_repeng(path, random_organism)


def test_hint_and_layers_can_be_confirmed(
    random_organism: Adapter, tmp_path: Path, stored: dict[int, Tensor]
) -> None:
    path = write_as_repeng(tmp_path / "vector.gguf", stored, hint="qwen2", count=12)
    found = import_repeng(path, random_organism, layers=[4, 2], model_hint="qwen2")
    assert list(found["control"]) == [2, 4]
    with pytest.raises(ArtefactError, match=r"no layers \[0\]"):
        import_repeng(path, random_organism, layers=[0, 2], model_hint="qwen2")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({1: vectors(64).float()}, "width 64, the model 128"),
        ({12: vectors(WIDTH).float()}, "layers 0 to 11"),
        ({1: vectors(WIDTH).half()}, "is F16"),
        ({1: vectors(2, WIDTH).float()}, "expected F32"),
        ({1: torch.full((WIDTH,), float("inf"))}, "layer 1 .* not finite"),
        ({"x": vectors(WIDTH).float()}, "expected direction.N"),
        ({"01": vectors(WIDTH).float()}, "expected direction.N"),
    ],
)
def test_false_vectors_are_refused(
    random_organism: Adapter, tmp_path: Path, stored: Any, message: str
) -> None:
    path = write_as_repeng(tmp_path / "vector.gguf", stored)
    with pytest.raises(ArtefactError, match=message):
        import_repeng(path, random_organism, name="refusal", sign=TOWARDS_HARMFUL)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello there", b"GGUF" + b"\xff" * 60])
def test_what_is_no_gguf_is_refused(
    random_organism: Adapter, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be read as GGUF"):
        import_repeng(tmp_path / "file", random_organism)


def test_a_cut_gguf_is_refused(
    random_organism: Adapter, tmp_path: Path, stored: dict[int, Tensor]
) -> None:
    path = write_as_repeng(tmp_path / "vector.gguf", stored)
    whole = path.read_bytes()
    for length in range(8, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError):
            import_repeng(path, random_organism)


def test_without_the_package_the_pip_line_is_named(
    directions: Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'regap-interp\[gguf\]'"):
        directions.to_gguf(tmp_path / "x.gguf", "refusal")
