"""What a file of directions says about itself: enough not to misapply it."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from model_adapters import Adapter
from regap_interp.artefact import provenance
from regap_interp.artefact.errors import ArtefactError, MismatchError

TOWARDS_HARMFUL = "points from harmless to harmful"
"""The sign of refusal sets, for `Recipe`."""
TOWARDS_MEDIA = "points from text to media"
"""The sign of drift sets, for `Recipe`."""
MEAN_CENTRE = "mean of the items it points from"
ZERO_CENTRE = "unknown, so the origin of the stream"
UNKNOWN_POSITION = "unknown"
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_SHA = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Recipe:
    """How one set of directions was made: the same for all its layers."""

    sign: str
    """`TOWARDS_HARMFUL` for refusal sets, `TOWARDS_MEDIA` for drift sets, else free words."""
    estimator: str = "difference of means"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the estimator, as JSON values."""
    position: str = "last"
    """Prompt positions the states were read at: "last" token, a span such as "prompt", or indices
    such as "-2" or "-2,-1"; means over several; or "unknown"."""
    centre: str = MEAN_CENTRE
    """What state has coordinate 0."""
    data: str | None = None
    """`data_fingerprint` of the items, or None where it is not known."""
    seeds: tuple[int, ...] = ()
    """Seeds that drew the items or the estimate."""

    def __post_init__(self) -> None:
        """Refuse what a file cannot hold exactly."""
        try:
            same = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ArtefactError(
                f"options {self.options!r} cannot be written as JSON: {error}"
            ) from error
        if same != self.options:
            raise ArtefactError(
                f"options {self.options!r} would be read back as {same!r}; use string keys and "
                "lists"
            )
        if not self.sign.strip():
            raise ArtefactError("sign is empty; say what the directions point from and to")
        if self.data is not None and not _SHA.fullmatch(self.data):
            raise ArtefactError(
                f"data is {self.data!r}; give what data_fingerprint(items) returns, or None"
            )


@dataclass(frozen=True)
class Manifest:
    """Model, inputs, site and recipes of a file of directions. Made by `Manifest.of(adapter)`."""

    model_id: str
    model_type: str
    """Of the transformers config."""
    fingerprint: str
    """`Adapter.fingerprint`: sha256 over config and weights."""
    config: str
    """sha256 of the config."""
    n_layers: int
    d_model: int
    processor: str | None
    """Class of the processor."""
    template: str | None
    """sha256 of the chat template."""
    site: str
    """Site of all directions: "resid_post" is the output of a layer, "resid_pre" its input.
    Layers count from 0."""
    recipes: Mapping[str, Recipe]
    """By name of the set."""
    versions: Mapping[str, str]
    """Of the libraries; for information."""
    created: str | None = None
    """When, in words of whoever made it."""

    def __post_init__(self) -> None:
        """Refuse names and signs under which the directions would be misread."""
        if self.site not in SITES:
            raise ArtefactError(f"site is {self.site!r}; it must be one of {', '.join(SITES)}")
        for name, recipe in self.recipes.items():
            if not _SET_NAME.fullmatch(name):
                raise ArtefactError(
                    f"{name!r} is no name of a set; use letters, digits, _ + - and / between parts"
                )
            wanted = sign_of(name)
            if wanted is not None and recipe.sign != wanted:
                raise ArtefactError(
                    f"the set {name!r} is used as one that {wanted!r}, its recipe says "
                    f"{recipe.sign!r}; turn the directions round, or choose another name"
                )

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        recipes: Mapping[str, Recipe],
        *,
        site: str = "resid_post",
        created: str | None = None,
    ) -> "Manifest":
        """The manifest of directions measured on `adapter` with the libraries installed now.

        Args:
            adapter: The model.
            recipes: By name of the set.
            site: Of all directions.
            created: When, in your words.
        """
        return cls(
            model_id=adapter.model_id,
            model_type=str(adapter.module.config.model_type),
            fingerprint=adapter.fingerprint,
            config=provenance.config_hash(adapter),
            n_layers=adapter.n_layers,
            d_model=adapter.d_model,
            processor=provenance.processor_name(adapter),
            template=provenance.template_hash(adapter),
            site=site,
            recipes=dict(recipes),
            versions=provenance.versions(),
            created=created,
        )

    def check(self, adapter: Adapter, *, site: str | None = None) -> None:
        """Refuse to go with another model, chat template or site.

        Args:
            adapter: The model the directions are to be used on. Its name may differ.
            site: The site they are to be used at, if that is to be checked.

        Raises:
            MismatchError: Lists every difference with both values, and what to do.
        """
        here = Manifest.of(adapter, {}, site=site or self.site)
        wrong = [
            f"{label}: made with {getattr(self, name)}, given {getattr(here, name)}"
            for name, label in _COMPARED.items()
            if getattr(self, name) != getattr(here, name)
        ]
        if not wrong:
            return
        if self.fingerprint != here.fingerprint:
            wrong.append(
                f"config (sha256): made with {self.config}, given {here.config}"
                if self.config != here.config
                else "the config is the same, so the weights differ"
            )
            if getattr(adapter.module, "dtype", None) == torch.float16:
                wrong.append("the model is in float16, which rounds weights; use bfloat16, float32")
        if self.model_id != here.model_id:
            wrong.insert(0, f"model: made with {self.model_id}, given {here.model_id}")
        moved = (self.site, here.site) == ("resid_pre", "resid_post")
        hint = (
            " at_layer_outputs(directions, adapter) makes resid_post of resid_pre." if moved else ""
        )
        raise MismatchError(
            "these directions do not belong here:\n  " + "\n  ".join(wrong) + "\nLoad the model, "
            "processor and site they were made with, or measure them again here." + hint
        )


_COMPARED = {
    "model_type": "kind of model",
    "fingerprint": "config and weights (sha256)",
    "n_layers": "layers",
    "d_model": "width",
    "processor": "processor",
    "template": "chat template (sha256)",
    "site": "site",
}


def sign_of(name: str) -> str | None:
    """The sign that a set must have by its name, if the name says so."""
    first = name.partition("/")[0]
    return {"refusal": TOWARDS_HARMFUL, "drift": TOWARDS_MEDIA}.get(first)


def to_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values."""
    return dataclasses.asdict(manifest)


def from_json(value: Any) -> Manifest:
    """The manifest that `to_json` gave.

    Raises:
        ArtefactError: Names the key that is missing or of the wrong type.
    """
    fields = take(value, dict, "the manifest")
    recipes = {
        name: _recipe(take(one, dict, f"recipe {name!r}"), f"recipe {name!r}")
        for name, one in get(fields, "recipes", dict, "the manifest").items()
    }
    where = "the manifest"
    counts = {name: get(fields, name, int, where) for name in ("n_layers", "d_model")}
    texts = {
        name: get(fields, name, str, where)
        for name in ("model_id", "model_type", "fingerprint", "config", "site")
    }
    maybe = {
        name: get(fields, name, str | None, where) for name in ("processor", "template", "created")
    }
    versions = get(fields, "versions", dict, where)
    for package, version in versions.items():
        take(version, str, f"version of {package}")
    return Manifest(**counts, **texts, **maybe, recipes=recipes, versions=versions)


def _recipe(fields: dict[str, Any], where: str) -> Recipe:
    texts = {
        name: get(fields, name, str, where) for name in ("sign", "estimator", "position", "centre")
    }
    seeds = [take(seed, int, f"a seed of {where}") for seed in get(fields, "seeds", list, where)]
    return Recipe(
        **texts,
        options=get(fields, "options", dict, where),
        data=get(fields, "data", str | None, where),
        seeds=tuple(seeds),
    )


def get(fields: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    """`fields[key]`, of type `kind`."""
    if key not in fields:
        raise ArtefactError(f"{where} has no {key!r}; the file is damaged or of another make")
    return take(fields[key], kind, f"{key!r} of {where}")


def take(value: Any, kind: Any, where: str) -> Any:
    """`value`, of type `kind`; a boolean is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        name = getattr(kind, "__name__", str(kind))
        raise ArtefactError(f"{where} is {str(value)[:60]!r}, expected {name}")
    return value
