"""Statistics in files, read without trusting them."""

import os
from array import array
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import (
    check_digest,
    digest,
    metadata_of,
    read_tensors,
    write_atomically,
)
from regap_interp.artefact.manifest import get, take
from regap_interp.moments import Moments

if TYPE_CHECKING:
    from regap_interp.statistics import Rule, Statistics

_FORMAT = "regap_interp.statistics/1"


def write(statistics: "Statistics", path: str | os.PathLike[str]) -> None:
    """Write what `read` reads: `SITE.LABEL.PART` and `LABEL.items`, sites and labels by number."""
    tensors: dict[str, Tensor] = {}
    for j, label in enumerate(statistics.labels):
        tensors[f"{j}.items"] = torch.tensor(statistics._items[label].tolist(), dtype=torch.int64)
        for i, site in enumerate(statistics.sites):
            part = statistics[(*site, label)].tensors()
            tensors |= {f"{i}.{j}.{name}": value for name, value in part.items()}
    about = {
        "format": _FORMAT,
        "sites": [list(site) for site in statistics.sites],
        "at": statistics.at if isinstance(statistics.at, str) else list(statistics.at),
        "covariance": statistics.covariance,
        "model": statistics.model,
        "edits": statistics.edits,
        "labels": list(statistics.labels),
        "counts": [statistics.count(label) for label in statistics.labels],
    }
    about["sha256"] = digest(tensors, about)
    write_atomically(os.fspath(path), lambda place: save_file(tensors, place, metadata_of(about)))


def read(kind: type["Statistics"], path: str | os.PathLike[str]) -> "Statistics":
    """What `write` wrote.

    Raises:
        ArtefactError: Says what is wrong with the file.
    """
    where = os.fspath(path)
    tensors, value = read_tensors(where)
    about = take(value, dict, f"the metadata of {where}")
    if about.get("format") != _FORMAT:
        raise ArtefactError(f"{where} holds {about.get('format')!r}; expected {_FORMAT!r}")
    check_digest(where, tensors, about)
    sites = [tuple(take(one, list, "a site")) for one in get(about, "sites", list, where)]
    at: Rule = tuple(about["at"]) if isinstance(about.get("at"), list) else about.get("at")
    try:
        loaded = kind(sites, at=at, covariance=about.get("covariance"))
        Moments(1, covariance=loaded.covariance)
    except ValueError as error:
        raise ArtefactError(f"{where}: {error}") from error
    loaded.model = get(about, "model", str | None, where)
    loaded.edits = get(about, "edits", str | None, where)
    labels, counts = get(about, "labels", list, where), get(about, "counts", list, where)
    if len(set(map(str, labels))) != len(labels) or len(labels) != len(counts):
        raise ArtefactError(f"{where} has labels {labels} with counts {counts}; it is damaged")
    for j, (label, count) in enumerate(zip(labels, counts, strict=True)):
        label = take(label, str, f"a label of {where}")
        ids = _ids(tensors.pop(f"{j}.items", None), take(count, int, "a count"), where)
        loaded._items[label] = ids
        for i, site in enumerate(loaded.sites):
            loaded._moments[(*site, label)] = _moments(
                f"{site} with label {label!r} in {where}", tensors, f"{i}.{j}", loaded, len(ids)
            )
    if tensors:
        raise ArtefactError(f"{where} holds tensors that it does not name: {sorted(tensors)[:5]}")
    return loaded


def _ids(value: Tensor | None, count: int, where: str) -> "array[int]":
    if (
        value is None
        or value.dtype != torch.int64
        or value.shape != (count,)
        or count < 1
        or not (value[1:] > value[:-1]).all()
    ):
        raise ArtefactError(f"{where} does not hold {count} ids in rising order; it is damaged")
    return array("q", value.tolist())


def _moments(
    where: str, tensors: dict[str, Tensor], prefix: str, of: "Statistics", count: int
) -> Moments:
    """Takes what it reads out of `tensors`."""
    mean = tensors.get(f"{prefix}.mean")
    if mean is None or mean.ndim != 1 or not len(mean):
        raise ArtefactError(f"{where}: there is no mean; the file is damaged")
    width, found = len(mean), {}
    for name, empty in Moments(width, covariance=of.covariance).tensors().items():
        value: Any = tensors.pop(f"{prefix}.{name}", None)
        shape = None if value is None else tuple(value.shape)
        # A sketch has as many rows as it was fed, up to twice its rank.
        expected = tuple(empty.shape) if name != "rows" else (*(shape or (0,))[:1], width)
        most = 2 * of.covariance if isinstance(of.covariance, int) else 0
        if value is None or shape != expected or (name == "rows" and len(value) > most):
            raise ArtefactError(f"{where}: {name} is of shape {shape}, expected {expected}")
        if value.dtype != torch.float64 or not value.isfinite().all():
            raise ArtefactError(f"{where}: {name} is {value.dtype}, expected finite torch.float64")
        found[name] = value
    if (found["squares"] < 0).any():
        raise ArtefactError(f"{where}: squares are negative; the file is damaged")
    return Moments.from_tensors(count, found, of.covariance)
