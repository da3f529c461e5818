"""The layout of a file of directions: tensors, manifest and checksum."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regap_interp.artefact import manifest as manifests
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import check_digest, digest, read_tensors, write_tensors
from regap_interp.artefact.manifest import Manifest, get, take
from regap_interp.directions import Direction

FORMAT = "regap_interp.directions"
SCHEMA = 1

Layers = Mapping[int, Direction]


def write(path: str | Path, manifest: Manifest, sets: Mapping[str, Layers]) -> None:
    """Write what `read` reads."""
    tensors = {
        f"{name}/{layer}/{part}": getattr(one, part)
        for name, layers in sets.items()
        for layer, one in layers.items()
        for part in ("vector", "centre")
    }
    about = {
        "format": FORMAT,
        "schema": SCHEMA,
        "manifest": manifests.to_json(manifest),
        "sets": {
            name: {str(layer): _facts(one) for layer, one in layers.items()}
            for name, layers in sets.items()
        },
    }
    write_tensors(path, tensors, {**about, "sha256": digest(tensors, about)})


def read(path: str | Path) -> tuple[Manifest, dict[str, Layers]]:
    """Manifest and sets of a file, bit for bit as written.

    Raises:
        ArtefactError: Says what is wrong with the file.
    """
    tensors, value = read_tensors(path)
    where = str(path)
    about = take(value, dict, f"the metadata of {where}")
    if get(about, "format", str, where) != FORMAT:
        raise ArtefactError(f"{where} is of format {about['format']!r}, expected {FORMAT!r}")
    if get(about, "schema", int, where) != SCHEMA:
        raise ArtefactError(
            f"{where} has schema version {about['schema']}, this version of regap_interp reads "
            f"{SCHEMA}; install the version that wrote it"
        )
    for key, tensor in tensors.items():
        if tensor.ndim != 1 or tensor.dtype != torch.float64:
            raise ArtefactError(
                f"{key} of {where} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected "
                "torch.float64 [d_model]"
            )
    sets: dict[str, Layers] = {
        name: _read_set(tensors, name, take(layers, dict, f"set {name!r}"))
        for name, layers in get(about, "sets", dict, where).items()
    }
    if len(tensors) != 2 * sum(map(len, sets.values())):
        raise ArtefactError(f"{where} holds tensors that its manifest does not name")
    manifest = manifests.from_json(about.get("manifest"))
    check_digest(path, tensors, about)
    return manifest, sets


def _facts(one: Direction) -> dict[str, Any]:
    return {"norm": one.norm, "n_towards": one.n_towards, "n_from": one.n_from}


def _read_set(tensors: Mapping[str, Tensor], name: str, layers: dict[str, Any]) -> Layers:
    found = {}
    for key, counts in layers.items():
        where = f"{name} of layer {key}"
        if not re.fullmatch("0|[1-9][0-9]{0,5}", key):
            raise ArtefactError(f"{where}: a layer is a number from 0")
        counts = take(counts, dict, where)
        for part in ("vector", "centre"):
            if f"{name}/{key}/{part}" not in tensors:
                raise ArtefactError(f"{where} has no {part}; the file is damaged")
        try:
            one = Direction(
                tensors[f"{name}/{key}/vector"],
                tensors[f"{name}/{key}/centre"],
                n_towards=get(counts, "n_towards", int, where),
                n_from=get(counts, "n_from", int, where),
            )
        except ValueError as error:
            raise ArtefactError(f"{where}: {error}") from error
        # The last digits of a sum depend on the machine.
        if not math.isclose(get(counts, "norm", float, where), one.norm, rel_tol=1e-9):
            raise ArtefactError(f"{where} has norm {one.norm}, the manifest says {counts['norm']}")
        found[int(key)] = one
    return found
