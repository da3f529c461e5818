"""Directions made by other programs, brought into this package's conventions."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_adapters import Adapter
from regap_interp.artefact import gguf_file
from regap_interp.artefact.directions import Directions
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.manifest import (
    TOWARDS_HARMFUL,
    UNKNOWN_POSITION,
    ZERO_CENTRE,
    Manifest,
    Recipe,
)
from regap_interp.artefact.stored import Layers
from regap_interp.directions import Direction

# Of the longest difference of means; less is rounding, as at the input of layer 0, where the
# tokens of the template are the same in both classes.
_NO_DIFFERENCE = 1e-9
# Tokens of a chat template behind the instruction; they are a handful.
_MOST_POSITIONS = 1000


def import_refusal_direction(
    path: str | Path,
    adapter: Adapter,
    *,
    metadata: str | Path | Mapping[str, Any] | None = None,
    position: int | None = None,
) -> Directions:
    """Directions of the `refusal_direction` repository of Arditi et al. (2406.11717).

    Their layer l is the *input* of layer l, so the result is of site "resid_pre"; positions count
    back from the end of the prompt. The files hold no means, so coordinates start at the origin
    of the stream, and no numbers of items, which are 0 here.

    - `direction.pt`, `[d_model]`: one set "refusal" with one layer.
    - `mean_diffs.pt`, `[position, layer, d_model]`: sets "refusal/-k" ... "refusal/-1". Layers
      without a difference, as layer 0 usually is, are left out and named in the options.

    Args:
        path: The file. It is read as weights only: code in it does not run.
        adapter: The model the directions were measured on. The file does not say; you must know.
        metadata: For `direction.pt`: `{"pos": ..., "layer": ...}`, or the JSON file with it; by
            default `direction_metadata.json` beside `path`.
        position: For `mean_diffs.pt`: take only this position, such as -1, as the set "refusal".

    Raises:
        ArtefactError: Not such a file, another shape than the model's, or values that are not
            finite.
    """
    tensor = _read_pt(Path(path), adapter)
    if tensor.ndim == 1 and position is None:
        at, layer = _metadata(Path(path), metadata, adapter)
        zero: tuple[int, ...] = ()
        found = {"refusal": ({layer: tensor}, str(at), zero)}
    elif tensor.ndim == 3 and metadata is None:
        every = range(-len(tensor), 0)
        if position is not None and position not in every:
            raise ArtefactError(f"position is {position}; {path} has {', '.join(map(str, every))}")
        found = {
            "refusal" if position == at else f"refusal/{at}": _with_difference(path, tensor[at], at)
            for at in (every if position is None else [position])
        }
    else:
        raise ArtefactError(
            f"{path} has shape {tuple(tensor.shape)}; expected [d_model] with metadata, or "
            "[position, layer, d_model] without; position= is for the latter"
        )
    recipes = {
        name: Recipe(
            sign=TOWARDS_HARMFUL,
            position=at,
            centre=ZERO_CENTRE,
            options={"imported from": "refusal_direction", "no difference in layers": list(none)},
        )
        for name, (_, at, none) in found.items()
    }
    sets = {name: _directions(path, layers) for name, (layers, _, _) in found.items()}
    return Directions(Manifest.of(adapter, recipes, site="resid_pre"), sets)


def import_repeng(
    path: str | Path,
    adapter: Adapter,
    *,
    name: str = "control",
    sign: str = "as in the file, which does not say",
    layers: Sequence[int] | None = None,
    model_hint: str | None = None,
) -> Directions:
    """A GGUF control vector of repeng or llama.cpp, as one set of site "resid_post".

    Tensor `direction.N` acts on the output of decoder layer N, counted from 0. repeng estimates
    the last layer's vector behind the final norm, though it adds it before. The file holds no
    means, so coordinates start at the origin of the stream, and no numbers of items, which are 0
    here.

    Args:
        path: The file.
        adapter: The model the vectors were made for.
        name: Of the set in the result, such as "refusal" or "drift/image".
        sign: What the vectors point from and to; see `Recipe.sign`.
        layers: Layers to take; by default all, which must be as many as the file announces.
        model_hint: The kind of model that the file names, where you know that it fits although the
            adapter's config has another `model_type`.

    Raises:
        ArtefactError: No control vector, one for another kind or width of model, missing layers,
            or values that are not finite.
        ImportError: The package gguf is not installed.
    """
    vectors, hint, announced = gguf_file.read(path)
    config = adapter.module.config
    kinds = (str(config.model_type), str(config.get_text_config().model_type))
    if hint != model_hint and hint not in kinds:
        raise ArtefactError(
            f"{path} was made for a model of type {hint!r}, {adapter.model_id} is "
            f"{' or '.join(map(repr, dict.fromkeys(kinds)))}; if it fits all the same, give "
            f"model_hint={hint!r}"
        )
    if layers is None and announced != len(vectors):
        raise ArtefactError(
            f"{path} announces {announced} layers and holds {len(vectors)} "
            f"({', '.join(map(str, sorted(vectors)))}); name those you want: layers=[...]"
        )
    wanted = sorted(vectors if layers is None else layers)
    missing = [layer for layer in wanted if layer not in vectors]
    if missing or not wanted:
        raise ArtefactError(
            f"{path} has no layers {missing}; it has {', '.join(map(str, sorted(vectors)))}"
        )
    recipe = Recipe(
        sign=sign,
        estimator="control vector",
        position=UNKNOWN_POSITION,
        centre=ZERO_CENTRE,
        options={"imported from": "GGUF", "model_hint": hint},
    )
    found = _directions(path, {layer: vectors[layer] for layer in wanted})
    return Directions(Manifest.of(adapter, {name: recipe}), {name: found})


def _read_pt(path: Path, adapter: Adapter) -> Tensor:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"{path} is no plain tensor, so it is not opened: it could run code. The cause: {error}"
        ) from error
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ArtefactError(f"{path} holds a {type(found).__name__}, expected one float tensor")
    # All before a copy is made: a small file can announce a tensor of any size.
    if found.is_nested or found.layout != torch.strided or found.device.type != "cpu":
        raise ArtefactError(
            f"{path} holds a tensor that is sparse, nested or without values; expected a plain one"
        )
    shape = tuple(found.shape)
    fits = len(shape) == 1 or (len(shape) == 3 and shape[0] and shape[1] == adapter.n_layers)
    if (
        not fits
        or shape[-1] != adapter.d_model
        or found.numel() > _MOST_POSITIONS * shape[-1] * (adapter.n_layers)
    ):
        raise ArtefactError(
            f"{path} has shape {shape}; expected [{adapter.d_model}], or [position, "
            f"{adapter.n_layers}, {adapter.d_model}], for the layers and width of "
            f"{adapter.model_id}"
        )
    return found.detach().double().clone()


def _metadata(
    path: Path, given: str | Path | Mapping[str, Any] | None, adapter: Adapter
) -> tuple[int, int]:
    """(position, layer) of a single direction."""
    if not isinstance(given, Mapping):
        file = Path(given) if given is not None else path.with_name("direction_metadata.json")
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ArtefactError(
                f'{path} needs its position and layer: metadata={{"pos": ..., "layer": ...}}, or '
                f"the file {file}, which could not be read: {error}"
            ) from error
    fields = given if isinstance(given, Mapping) else {}
    position, layer = fields.get("pos"), fields.get("layer")
    if type(position) is not int or type(layer) is not int or position >= 0:
        raise ArtefactError(
            f'the metadata of {path} is {given!r}; expected {{"pos": negative number, "layer": '
            "number}"
        )
    if not 0 <= layer < adapter.n_layers:
        raise ArtefactError(
            f"the metadata of {path} names layer {layer}; {adapter.model_id} has layers 0 to "
            f"{adapter.n_layers - 1}"
        )
    return position, layer


def _with_difference(
    path: str | Path, rows: Tensor, position: int
) -> tuple[dict[int, Tensor], str, tuple[int, ...]]:
    """The layers of one position that have a direction, the position, and the other layers.

    Raises:
        ArtefactError: No layer has one.
    """
    if not rows.any():
        raise ArtefactError(
            f"position {position} of {path} is zero at every layer; the classes do not differ there"
        )
    norms = rows.norm(dim=-1)
    zero = tuple(torch.nonzero(norms <= _NO_DIFFERENCE * norms.max()).flatten().tolist())
    layers = {layer: row for layer, row in enumerate(rows) if layer not in zero}
    return layers, str(position), zero


def _directions(path: str | Path, layers: Mapping[int, Tensor]) -> Layers:
    found = {}
    for layer, vector in layers.items():
        try:
            found[layer] = Direction(vector, torch.zeros_like(vector), n_towards=0, n_from=0)
        except ValueError as error:
            raise ArtefactError(f"layer {layer} of {path}: {error}") from error
    return found
