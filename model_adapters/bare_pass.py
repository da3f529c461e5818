"""The model as it came, before it is wrapped: seen by plain hooks only."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model_adapters.errors import SelfCheckError
from model_adapters.families import Family, Medium
from model_adapters.families.medium import tensor_of
from model_adapters.hooks import first_argument
from model_adapters.layout import Layout
from model_adapters.parts import FIRST, Part, first, logits_part, stream_part
from model_adapters.probe import example


@dataclass(frozen=True)
class Bare:
    """What one pass of the bare model showed."""

    logits: Float[Tensor, "batch position d_vocab"]
    head: Part
    """How the model makes its logits of what its head returns."""
    media: Mapping[str, tuple[Tensor, Tensor]]
    """Of each medium: what entered the first layer at its placeholders, and what its `features`
    made, both `[position, d_model]`."""


@dataclass
class _Seen:
    features: dict[str, list[Tensor | type]] = field(default_factory=dict)
    towers: set[str] = field(default_factory=set)
    heads: list[Tensor] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def bare_pass(module: nn.Module, family: Family, layout: Layout, inputs: Mapping[str, Any]) -> Bare:
    """Run the model as it came.

    Media that share a module with others, or go another way beside them, get a pass of their own.

    Args:
        module: the model.
        family: its entry.
        layout: where its parts are.
        inputs: as from `probe`.

    Raises:
        SelfCheckError: when the model refuses the prompt that its entry describes, its logits are
            not finite, or a medium's `features` or `tower` have no part in it.
    """
    model: Any = module
    text = model.config.get_text_config()
    with _watched(module, family, layout) as seen:
        logits = _logits(module, family, inputs)
    if not logits.isfinite().all():
        raise SelfCheckError(
            f"the model's own logits are not finite in {logits.dtype}; load it in another dtype"
        )
    # Not every model does what its text config says (Cohere's scale holds for text models only).
    same = seen.heads and seen.heads[0].shape == logits.shape
    head = FIRST if same and torch.equal(seen.heads[0], logits) else logits_part(text)
    media: dict[str, tuple[Tensor, Tensor]] = {}
    paths = [medium.features for medium in family.media]
    for medium in family.media:
        told, where = seen, inputs
        if paths.count(medium.features) > 1 or not seen.features[medium.kind]:
            where = example(module, family, (medium.kind,))
            with _watched(module, family, layout) as told:
                _logits(module, family, where)
        media[medium.kind] = _compared(medium, told, module, family, where)
    return Bare(logits, head, media)


@contextlib.contextmanager
def _watched(module: nn.Module, family: Family, layout: Layout) -> Iterator[_Seen]:
    model: Any = module
    stream = stream_part(model.config.get_text_config(), altup=family.altup)
    seen = _Seen({medium.kind: [] for medium in family.media})

    def enters(_: Any, args: Any, kwargs: Any) -> None:
        seen.entering.append(stream.get(first_argument(args, kwargs)).clone())

    with contextlib.ExitStack() as hooks:
        for medium in family.media:
            tower, features = (module.get_submodule(p) for p in (medium.tower, medium.features))
            runs, makes = _runs(seen, medium), _makes(seen, medium)
            hooks.callback(tower.register_forward_hook(runs).remove)
            hooks.callback(features.register_forward_hook(makes).remove)
        head, layer = module.get_submodule(layout.head), module.get_submodule(f"{layout.layers}.0")
        kept = head.register_forward_hook(lambda _, args, output: seen.heads.append(first(output)))
        hooks.callback(kept.remove)
        hooks.callback(layer.register_forward_pre_hook(enters, with_kwargs=True).remove)
        yield seen


def _runs(seen: _Seen, medium: Medium) -> Any:
    return lambda _, args, output: seen.towers.add(medium.kind)


def _makes(seen: _Seen, medium: Medium) -> Any:
    def keep(_: Any, args: Any, output: Any) -> None:
        # At once: some models put the projected vectors into what their encoder returned.
        try:
            vectors = tensor_of(output)
        except (AttributeError, RuntimeError):
            vectors = None
        seen.features[medium.kind].append(
            vectors.clone() if isinstance(vectors, Tensor) else type(output)
        )

    return keep


def _logits(module: nn.Module, family: Family, inputs: Mapping[str, Any]) -> Tensor:
    try:
        logits: Tensor = module(**inputs).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if isinstance(error, KeyError | RuntimeError) and hasattr(module, "hf_device_map"):
            raise  # What `load` knows a reason for.
        raise SelfCheckError(
            f"the model does not run on a short prompt made as its family entry ({family.name}) "
            f"says{_claims(module, family, inputs)}. The cause: {type(error).__name__}: {error}"
        ) from error
    return logits


def _claims(module: nn.Module, family: Family, inputs: Mapping[str, Any]) -> str:
    model: Any = module
    claims = []
    for medium in family.media:
        if medium.given(inputs):
            values, token = inputs[medium.values], medium.placeholder(model.config)
            shape = f" of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ""
            counts = [item.positions for item in medium.items(inputs, model.config)]
            claims.append(
                f"{medium.values}{shape} is {len(counts)} {medium.kind}(s) that fill "
                f"{' + '.join(map(str, counts))} positions (token {token})"
            )
    return ": " + "; ".join(claims) if claims else ""


def _compared(
    medium: Medium, seen: _Seen, module: nn.Module, family: Family, inputs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    model: Any = module
    entry = f"The family entry ({family.name}) does not fit this model"
    for name, path, ran in (
        ("tower", medium.tower, medium.kind in seen.towers),
        ("features", medium.features, bool(seen.features[medium.kind])),
    ):
        if not ran:
            raise SelfCheckError(
                f"{name} of the {medium.kind}, {path!r}, did not run in a pass with an "
                f"{medium.kind}. {entry}"
            )
    places = medium.placeholders(inputs, model.config)
    entered = seen.entering[0][places.to(seen.entering[0].device)]
    outputs = [output for output in seen.features[medium.kind] if isinstance(output, Tensor)]
    try:
        made = medium.vectors(outputs, module, inputs).to(entered)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        kinds = sorted({str(one) for one in seen.features[medium.kind] if isinstance(one, type)})
        raise SelfCheckError(
            f"what features of the {medium.kind}, {medium.features!r}, returns "
            f"({', '.join(kinds) or 'tensors'}) cannot be read as vectors at positions: "
            f"{type(error).__name__}: {error}. {entry}"
        ) from error
    if made.shape != entered.shape:
        raise SelfCheckError(
            f"features of the {medium.kind}, {medium.features!r}, made vectors of shape "
            f"{tuple(made.shape)}, but {tuple(entered.shape)} entered the first layer at the "
            f"{medium.kind}'s placeholders. {entry}"
        )
    return entered, made
