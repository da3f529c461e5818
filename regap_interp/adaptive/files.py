"""Bundles on disk: one safetensors file each, with a JSON manifest inside."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_adapters import Adapter
from regap_interp.adaptive.bundle import Bundle, Calibration, Sweep
from regap_interp.adaptive.roc import Roc
from regap_interp.artefact import manifest as manifests
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import read_tensors, write_tensors
from regap_interp.artefact.manifest import get
from regap_interp.directions import Direction, Origin

_FORMAT = "regap_interp.bundle/1"
_DIRECTIONS = ("drift", "refusal", "diagnostic_refusal")
_PLAIN = ("modality", "layer", "diagnostic", "weak", "strong", "threshold", "signal", "fallback")
_CURVES = ("thresholds", "false_positive", "true_positive")


def save_bundle(bundle: Bundle, path: str | Path) -> None:
    """Write a bundle to one file; the same bundle always gives the same bytes.

    Raises:
        ArtefactError: The folder does not exist.
    """
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {name: getattr(bundle, name) for name in _PLAIN}
    for name in _DIRECTIONS:
        direction: Direction = getattr(bundle, name)
        tensors[f"{name}.vector"], tensors[f"{name}.centre"] = direction.vector, direction.centre
        about[name] = {
            "n_towards": direction.n_towards,
            "n_from": direction.n_from,
            "origin": None if direction.origin is None else asdict(direction.origin),
        }
    made = bundle.calibration
    for signal, curve in made.roc.items():
        for column in _CURVES:
            values = torch.tensor(getattr(curve, column), dtype=torch.float64)
            tensors[f"roc.{signal}.{column}"] = values
    about["calibration"] = {
        "reasons": dict(made.reasons),
        "n": dict(made.n),
        "refused": made.refused,
        "seed": made.seed,
        "data": made.data,
        "roc": {
            signal: {name: getattr(one, name) for name in ("auroc", "n_harmful", "n_benign")}
            for signal, one in made.roc.items()
        },
        "sweeps": {name: asdict(one) for name, one in made.sweeps.items()},
    }
    about["manifest"] = manifests.to_json(bundle.manifest)
    write_tensors(path, tensors, {"format": _FORMAT, **about})


def load_bundle(path: str | Path, adapter: Adapter | None = None) -> Bundle:
    """The bundle of a file, exactly as it was saved.

    Args:
        path: As given to `save_bundle`.
        adapter: The model it is to be used on, to have it checked now and not when it is used.

    Raises:
        ArtefactError: No such file, a file of another kind, or a damaged one.
        MismatchError: It was made for another model, processor or chat template.
    """
    tensors, about = read_tensors(path)
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ArtefactError(
            f"{path} is no bundle of this version ({_FORMAT}); calibrate again, or load "
            "directions with Directions.load"
        )
    try:
        parts: dict[str, Any] = {name: about[name] for name in _PLAIN}
        parts |= {name: _direction(tensors, about[name], name) for name in _DIRECTIONS}
        parts["calibration"] = _calibration(tensors, about["calibration"])
        bundle = Bundle(**parts, manifest=manifests.from_json(about["manifest"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if adapter is not None:
        bundle.manifest.check(adapter)
    return bundle


def _direction(tensors: Mapping[str, Tensor], about: Mapping[str, Any], name: str) -> Direction:
    origin = get(about, "origin", dict | None, name)
    return Direction(
        vector=tensors[f"{name}.vector"],
        centre=tensors[f"{name}.centre"],
        n_towards=about["n_towards"],
        n_from=about["n_from"],
        origin=None if origin is None else Origin(**origin),
    )


def _calibration(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Calibration:
    curves = {}
    for signal, one in about["roc"].items():
        points: dict[str, Any] = {
            column: tuple(tensors[f"roc.{signal}.{column}"].tolist()) for column in _CURVES
        }
        curves[signal] = Roc(**points, **one)
    sweeps = {
        name: Sweep(tuple(one["columns"]), tuple(tuple(row) for row in one["rows"]))
        for name, one in about["sweeps"].items()
    }
    rest = {
        one.name: about[one.name]
        for one in fields(Calibration)
        if one.name not in ("roc", "sweeps")
    }
    return Calibration(roc=curves, sweeps=sweeps, **rest)
