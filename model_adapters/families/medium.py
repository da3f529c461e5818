"""What an image, an audio or a video is to a model: input tensors, and positions of the prompt."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import pad

from model_adapters.errors import InputError

Kind = Literal["image", "audio", "video"]
Config = Any  # a transformers configuration; its class differs from family to family
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Join:
    """How an input of several encodings becomes that of one batch."""

    axis: int = 0
    """Axis along which they are put after one another; along others they are padded at the end."""
    fill: float | None = 0
    """What pads them; None where the model has no way to leave padding out."""
    rows: bool = False
    """Whether there is one entry for each request, so that requests without media have one too."""


@dataclass(frozen=True)
class Item:
    """One image, audio or video (or one tile of an image), as the prompt holds it."""

    positions: int
    """Placeholders it takes."""
    grid: tuple[int, int, int] | None = None
    """(time, rows, columns) of the placeholders, row-major; None where they form no grid."""
    frames: tuple[int, int] | None = None
    """First and one-past-last feature frame that the model hears."""
    newlines: bool = False
    """Whether the last column of `grid` is a learned end-of-row vector, not a patch."""
    runs: tuple[int, ...] = ()
    """Lengths of the runs of placeholders, where other tokens stand in between (row breaks, the
    timestamps of a video); empty for one run."""


@dataclass(frozen=True, kw_only=True)
class Medium(ABC):
    """One medium of a family.

    A token is given as the dotted path of an attribute of the model's config ("image_token_id",
    "vision_config.image_token_id"), or as its id.
    """

    kind: Kind
    tower: str
    """Path of the encoder inside the model."""
    features: str
    """Path of the module that makes the vectors put at the placeholders, in order of its calls."""
    token: str | int
    """Token of the placeholders."""
    values: str
    """Input name of the pixels or sound features."""
    opens: str | int | None = None
    """Token that must stand before an item."""
    closes: str | int | None = None
    """Token that must stand after an item."""
    counts_opens: bool = False
    """Whether the model finds items by `opens`, so that one without it shifts all later ones."""

    @abstractmethod
    def joins(self) -> dict[str, Join]:
        """All inputs of this medium, and how those of several encodings become one."""

    @abstractmethod
    def items(self, inputs: Inputs, config: Config) -> list[Item]:
        """The items of checked inputs, in order of the prompt."""

    @abstractmethod
    def example(self, config: Config, generator: torch.Generator, size: int) -> dict[str, Tensor]:
        """Inputs of one small random item.

        Args:
            config: of the model.
            generator: draws the values.
            size: 0 or 1, two different sizes where the family knows sizes.
        """

    def required(self) -> tuple[str, ...]:
        """Inputs without which `values` cannot be used."""
        return tuple(name for name in self.joins() if name != self.values)

    def complete(self, inputs: Inputs) -> None:
        """Refuse a medium of which an input is missing or no tensor.

        Raises:
            InputError: naming the input.
        """
        for name in self.required():
            if inputs.get(name) is None:
                raise InputError(f"{self.values} was given without {name}")
        for name in self.joins():
            value = inputs.get(name)
            if value is not None and not isinstance(value, Tensor):
                raise InputError(f"{name} is a {type(value).__name__}; it must be a tensor")
            if value is not None and value.ndim == 0:
                raise InputError(f"{name} is a single number; it has one entry or more an item")
        if not inputs[self.values].is_floating_point():
            raise InputError(
                f"{self.values} is {inputs[self.values].dtype}; it must be floating-point, as the "
                "model's processor returns it"
            )

    def check(self, inputs: Inputs, config: Config) -> None:  # noqa: B027 - nothing to check here
        """Refuse inputs that do not belong together.

        Raises:
            InputError: naming the input, its shape and what it should be.
        """

    def joined(self, name: str, encodings: Sequence[Inputs], starts: Sequence[int]) -> Any:
        """One input of several encodings, for their batch; None where none has it.

        Args:
            name: one of `joins`.
            encodings: of one or more requests each.
            starts: the position in the batch at which each encoding's positions begin.
        """
        join = self.joins()[name]
        like = next((torch.as_tensor(e[name]) for e in encodings if e.get(name) is not None), None)
        if like is None:
            return None
        if any(self.given(encoding) and encoding.get(name) is None for encoding in encodings):
            raise InputError(
                f"{name} is given with some of the {self.kind}s of one batch only, so nothing says "
                "whose it is; give it with all or with none"
            )
        values: list[Tensor] = []
        for encoding in encodings:
            if encoding.get(name) is not None:
                values.append(torch.as_tensor(encoding[name]))
            elif join.rows:
                rows = len(encoding["input_ids"])
                values.append(like.new_empty((rows, *[0] * (like.ndim - 1))))
        axis = join.axis % like.ndim
        widest = [max(value.shape[i] for value in values) for i in range(like.ndim)]
        if join.fill is None and any(
            value.shape[i] != widest[i] for value in values for i in range(like.ndim) if i != axis
        ):
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            raise InputError(
                f"{name} of the requests have shapes {shapes}, and this model cannot leave padding "
                f"out: the {self.kind}s of one batch must be of one size"
            )
        fill = join.fill or 0
        return torch.cat([_padded(value, widest, axis, fill) for value in values], dim=axis)

    def given(self, inputs: Inputs) -> bool:
        """Whether an encoding holds items of this medium."""
        values = inputs.get(self.values)
        return values is not None and (not isinstance(values, Tensor) or values.numel() > 0)

    def placeholder(self, config: Config) -> int | None:
        """Id of the placeholder token; None where the checkpoint does not say."""
        return token_id(config, self.token)

    def placeholders(self, inputs: Inputs, config: Config) -> Bool[Tensor, "batch position"]:
        """Where items of this medium stand in the prompt of `inputs`."""
        ids: Tensor = inputs["input_ids"]
        token = self.placeholder(config)
        return torch.zeros_like(ids, dtype=torch.bool) if token is None else ids == token

    def around(self, config: Config) -> tuple[list[int], list[int]]:
        """Tokens that must stand before and after an item."""
        sides = []
        for token in (self.opens, self.closes):
            found = None if token is None else token_id(config, token)
            sides.append([] if found is None else [found])
        return sides[0], sides[1]

    def vectors(self, outputs: Sequence[Tensor], module: nn.Module, inputs: Inputs) -> Tensor:
        """What is put at the placeholders, `[position, d_model]`, in order of the prompt.

        Args:
            outputs: of the `features` module, one for each call, in a pass with this medium only.
            module: the model.
            inputs: of that pass.
        """
        return torch.cat([output.reshape(-1, output.shape[-1]) for output in outputs])

    def placed(self, example: Inputs, config: Config, start: int) -> dict[str, Any]:
        """Inputs that tell where an example stands, for families that do not go by its tokens.

        Args:
            example: as from `example`, the only one in its prompt.
            config: of the model.
            start: its first position.
        """
        return {}

    def laid_out(self, item: Item, config: Config) -> list[int]:
        """Token ids of one item's positions, one possible separator between runs included."""
        token = self.placeholder(config)
        if token is None:
            raise InputError(
                f"this model's config has no {self.token!r}, so nothing says which token stands "
                f"for {self.kind}s; set it: model.config.{self.token} = ..."
            )
        before, after = self.around(config)
        ids = [token] * (item.runs or (item.positions,))[0]
        for run in item.runs[1:]:
            ids += [*after, *before, *[token] * run]
        return ids


Form = TypeVar("Form", bound=Medium)


def tensor_of(output: Any) -> Tensor:
    """The vectors in what a features module returns."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        output = pooled
    if isinstance(output, list | tuple):
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in output])
    tensor: Tensor = output
    return tensor


def rectangles(shapes: Iterable[Sequence[int]], side: int) -> list[Item]:
    """An item for each (rows, columns), of which squares of `side` by `side` are one position."""
    merged = [(rows // side, columns // side) for rows, columns in shapes]
    return [Item(rows * columns, grid=(1, rows, columns)) for rows, columns in merged]


def example_shape(size: int, side: int) -> tuple[int, int]:
    """Rows and columns of an example: one by two positions of `side` by `side`, or two by three."""
    return (1 + size) * side, (2 + size) * side


def like(form: type[Form], medium: Medium, **changes: Any) -> Form:
    """A medium of another form that agrees with `medium` in all fields that both forms have."""
    shared = {field.name for field in fields(form)} & {field.name for field in fields(medium)}
    return form(**{**{name: getattr(medium, name) for name in shared}, **changes})


def attribute(config: Config, path: str) -> Any:
    """A dotted attribute of a config, None where it is missing."""
    return reduce(lambda part, name: getattr(part, name, None), path.split("."), config)


def token_id(config: Config, token: str | int) -> int | None:
    """The id of a token given as an id or as the path of a config attribute."""
    found = attribute(config, token) if isinstance(token, str) else token
    return None if found is None else int(found)


def _padded(value: Tensor, widest: Sequence[int], axis: int, fill: float) -> Tensor:
    """`value` filled up at the end of every axis but one."""
    missing = [0 if i == axis else widest[i] - n for i, n in enumerate(value.shape)]
    return pad(value, [n for size in reversed(missing) for n in (0, size)], value=fill)
