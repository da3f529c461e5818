"""Directions with all that is needed not to misapply them, in one safetensors file."""

import dataclasses
import html
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model_adapters import Adapter
from regap_interp.artefact import gguf_file, stored
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import write_tensors
from regap_interp.artefact.manifest import UNKNOWN_POSITION, Manifest
from regap_interp.artefact.stored import Layers
from regap_interp.directions import Direction, Origin, cosine, orthogonalise


class Directions:
    """Named sets of directions, one for each layer, all of one model and site.

        directions = Directions(
            Manifest.of(adapter, {"refusal": Recipe(sign=TOWARDS_HARMFUL)}),
            {"refusal": {7: refusal_direction(harmful, harmless)}},
        )
        directions.save("refusal.safetensors")
        directions = load_directions("refusal.safetensors", adapter)
        directions["refusal"][7], directions.correction("image", 5)

    The set "refusal" points from harmless to harmful, the sets "drift/MODALITY" from text to
    media; other sets may have any name.
    """

    def __init__(self, manifest: Manifest, sets: Mapping[str, Layers]) -> None:
        """Bring sets and manifest together; every direction then remembers its origin.

        Raises:
            ArtefactError: A set without recipe or layers, a recipe without set, a layer the model
                does not have, another width, or a direction measured elsewhere.
        """
        if not sets or set(sets) != set(manifest.recipes):
            raise ArtefactError(
                f"sets are {sorted(sets)}, recipes are for {sorted(manifest.recipes)}; every set "
                "needs a recipe, and every recipe a set"
            )
        self.manifest = manifest
        self._sets = {name: _checked(manifest, name, layers) for name, layers in sets.items()}

    # --- directions ---

    def __getitem__(self, name: str) -> Layers:
        """The set of that name, by layer."""
        if name not in self._sets:
            raise ArtefactError(f"there is no set {name!r}; there are {', '.join(self._sets)}")
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the sets."""
        return iter(self._sets)

    def __len__(self) -> int:
        """Number of sets."""
        return len(self._sets)

    def __contains__(self, name: object) -> bool:
        """Whether there is a set of that name."""
        return name in self._sets

    def refusal(self, layer: int) -> Direction:
        """From harmless to harmful text, raw length.

        Raises:
            ArtefactError: Not in this file.
        """
        return self._at("refusal", layer)

    def drift(self, modality: str, layer: int) -> Direction:
        """From text twins to their media forms, raw length.

        Raises:
            ArtefactError: Not in this file.
        """
        return self._at(f"drift/{modality}", layer)

    def correction(self, modality: str, layer: int) -> Direction:
        """The drift without its refusal component of the same layer, at the length that is left.

        Subtracting it does not move the refusal coordinate of that layer.

        Raises:
            ArtefactError: Drift or refusal of that layer is not in this file.
        """
        return orthogonalise(self.drift(modality, layer), self.refusal(layer))

    def _at(self, name: str, layer: int) -> Direction:
        layers = self[name]
        if layer not in layers:
            raise ArtefactError(
                f"the set {name!r} has no layer {layer}; it has {', '.join(map(str, layers))}"
            )
        return layers[layer]

    def check(self, adapter: Adapter, *, site: str | None = None) -> None:
        """Refuse to go with another model, chat template or site; see `Manifest.check`.

        Raises:
            MismatchError: Lists every difference with both values, and what to do.
        """
        self.manifest.check(adapter, site=site)

    # --- files ---

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: float64 tensors `SET/LAYER/vector` and `SET/LAYER/centre`,
        and in the metadata, under `regap_interp`, a JSON manifest. Readable without torch.

        Raises:
            ArtefactError: There is no such folder.
        """
        stored.write(path, self.manifest, self._sets)

    @classmethod
    def load(cls, path: str | Path) -> "Directions":
        """Read what `save` wrote, bit for bit. `load_directions` also checks the model.

        Raises:
            ArtefactError: Says what is wrong with the file.
        """
        return cls(*stored.read(path))

    def to_safetensors(self, path: str | Path) -> None:
        """Write the bare vectors, float64, one tensor `SET.LAYER` each, for other programs.

        Raises:
            ArtefactError: There is no such folder.
        """
        vectors = {
            f"{name}.{layer}": one.vector
            for name, layers in self._sets.items()
            for layer, one in layers.items()
        }
        about = {"model": self.manifest.model_id, "site": self.manifest.site, "layers": "from 0"}
        write_tensors(path, vectors, about)

    def to_gguf(self, path: str | Path, name: str) -> None:
        """Write the set `name` as a control vector for repeng and llama.cpp, float32, raw length.

        Both add `direction.N` to the output of decoder layer N, counted from 0.

        Raises:
            ArtefactError: No such set, directions of another site than "resid_post", or layer 0,
                which llama.cpp cannot steer.
            ImportError: The package gguf is not installed.
        """
        layers = self[name]
        if self.manifest.site != "resid_post":
            raise ArtefactError(
                f"control vectors act on the output of layers (resid_post), these directions are "
                f"of {self.manifest.site}; measure them there, or see at_layer_outputs"
            )
        if 0 in layers:
            raise ArtefactError(
                f"the set {name!r} has layer 0, which llama.cpp cannot steer; make Directions of "
                "the other layers and export those"
            )
        vectors = {layer: one.vector for layer, one in layers.items()}
        gguf_file.write(path, vectors, self.manifest.model_type)

    # --- reports ---

    def table(self) -> list[dict[str, Any]]:
        """One row for each direction: set, layer, norm, n_towards, n_from, and the cosine with
        the refusal direction of that layer (None where there is none)."""
        refusal = self._sets.get("refusal", {})
        return [
            {
                "set": name,
                "layer": layer,
                "norm": one.norm,
                "n_towards": one.n_towards,
                "n_from": one.n_from,
                "cosine_with_refusal": cosine(one, refusal[layer]) if layer in refusal else None,
            }
            for name, layers in self._sets.items()
            for layer, one in layers.items()
        ]

    def __repr__(self) -> str:
        """Model, site and sets."""
        sets = ", ".join(f"{name} ({len(layers)} layers)" for name, layers in self._sets.items())
        return f"<Directions of {self.manifest.model_id}, {self.manifest.site}: {sets}>"

    def _repr_html_(self) -> str:
        rows = [
            [
                *map(str, (row["set"], row["layer"])),
                f"{row['norm']:.4g}",
                *map(str, (row["n_towards"], row["n_from"])),
                "" if row["cosine_with_refusal"] is None else f"{row['cosine_with_refusal']:.3f}",
            ]
            for row in self.table()
        ]
        head = ["set", "layer", "norm", "n towards", "n from", "cosine with refusal"]
        lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
        return f"<p>{html.escape(repr(self))}</p><table>{''.join(lines)}</table>"


def load_directions(
    path: str | Path, adapter: Adapter, *, site: str | None = "resid_post"
) -> Directions:
    """Read directions and make sure that they were made for this model, template and site.

    Args:
        path: What `Directions.save` wrote.
        adapter: The model they are to be used on.
        site: The site they are to be used at; None for whichever they were made at.

    Raises:
        ArtefactError: The file is damaged or of another make.
        MismatchError: Lists every difference with both values.
    """
    directions = Directions.load(path)
    directions.check(adapter, site=site)
    return directions


def _checked(manifest: Manifest, name: str, layers: Layers) -> Layers:
    """The set in order of layers, float64 on the CPU, each direction with its origin."""
    if not layers:
        raise ArtefactError(f"the set {name!r} has no layers")
    found = {}
    for layer in sorted(layers, key=str if any(type(key) is not int for key in layers) else None):
        one = layers[layer]
        where = f"{name} of layer {layer}"
        said = manifest.recipes[name].position
        position = None if said == UNKNOWN_POSITION else said
        origin = Origin(manifest.fingerprint, manifest.site, layer, position)
        if type(layer) is not int or not 0 <= layer < manifest.n_layers:
            raise ArtefactError(f"{where}: the model has layers 0 to {manifest.n_layers - 1}")
        if len(one.vector) != manifest.d_model:
            raise ArtefactError(
                f"{where} has width {len(one.vector)}, the model {manifest.d_model}"
            )
        if one.origin is not None and not _agree(one.origin, origin):
            raise ArtefactError(
                f"{where} was measured at {one.origin}, the manifest says {origin}; make the "
                "manifest fit, or take the origin off (dataclasses.replace(direction, "
                "origin=None)) and say in the recipe's options what differs"
            )
        found[layer] = dataclasses.replace(
            one,
            vector=one.vector.detach().to("cpu").double().clone(),
            centre=one.centre.detach().to("cpu").double().clone(),
            origin=origin,
        )
    return types.MappingProxyType(found)


def _agree(measured: Origin, recorded: Origin) -> bool:
    """Whether a direction's origin is that of the manifest, as far as it is known."""
    at = {"last" if one.position == "-1" else one.position for one in (measured, recorded)}
    same = dataclasses.replace(measured, position=recorded.position) == recorded
    return same and len(at - {None}) < 2


def _row(cells: list[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
