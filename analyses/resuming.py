"""Long runs that can be stopped: what was finished is kept, and the same call goes on from it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from regap_interp._interrupt import whole as uninterrupted
from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import read_tensors, write_tensors

Progress = Callable[[int, int], None]
"""Called with (requests run, in all) after every pass."""

_FORMAT = "partial 1"
_SAVE_EVERY = 5.0
"""Seconds between two writes of a checkpoint, at least."""
_SHARE = 20
"""Times that a write took, to be waited before the next one: large files are written rarely."""


@dataclass(frozen=True, eq=False, repr=False)
class Partial:
    """What had been finished when a run was stopped. Give it to the same call as `resume=`."""

    kind: str
    """Of the run, such as "sweep"."""
    recipe: str
    """sha256 in hex over all that its numbers depend on."""
    tensors: Mapping[str, Tensor]
    """float64; NaN where nothing was run yet."""
    done: Bool[Tensor, "..."]
    """Whether a request has been run, by whatever runs the call is made of."""

    def __repr__(self) -> str:
        """One line."""
        return f"<Partial {self.kind}, {int(self.done.sum())} of {self.done.numel()} requests run>"

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file.

        Raises:
            ArtefactError: there is no such folder.
        """
        about = {"format": _FORMAT, "kind": self.kind, "recipe": self.recipe}
        write_tensors(path, {**self.tensors, "done": self.done}, about)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> "Partial":
        """Read what `save` wrote.

        Raises:
            ArtefactError: the file is of another make, or damaged.
        """
        tensors, about = read_tensors(path)
        if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
            raise ArtefactError(f"{path} holds no finished part of a run")
        done, kind, recipe = tensors.pop("done", None), about.get("kind"), about.get("recipe")
        right = isinstance(kind, str) and isinstance(recipe, str)
        if done is None or done.dtype != torch.bool or not right:
            raise ArtefactError(f"{path} is damaged; remove it to begin anew")
        return Partial(str(kind), str(recipe), tensors, done)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C; `partial` holds what was finished, for `resume`."""

    def __init__(self, partial: Partial) -> None:
        done, total = int(partial.done.sum()), partial.done.numel()
        super().__init__(
            f"interrupted after {done} of {total} requests; they are kept: give "
            "resume=error.partial (in a notebook sys.last_value.partial) to the same call"
        )
        self.partial = partial


class Work:
    """Tensors that fill up pass by pass, from the beginning or from where a run was stopped."""

    def __init__(
        self,
        fresh: Partial,
        *,
        resume: Partial | None,
        checkpoint: str | Path | None,
        progress: Progress | bool,
    ) -> None:
        """Take over what was finished before.

        Args:
            fresh: Nothing finished. Its tensors are filled.
            resume: What the same run had finished.
            checkpoint: A file for it, read now if it is there, and written as the run goes.
            progress: Called after every pass; True draws a bar on standard error.

        Raises:
            ValueError: Of another run, or a file in a folder that is not there.
            ArtefactError: The file is damaged or of another make.
        """
        self.partial, self.progress = fresh, progress
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise ValueError(f"checkpoint is {str(checkpoint)!r}; there is no such folder")
        if resume is not None:
            self._take("resume", resume)
        if self.checkpoint is not None and self.checkpoint.exists():
            self._take(str(checkpoint), Partial.load(self.checkpoint))
        self._save_after = time.monotonic() + _SAVE_EVERY
        self._bar = tqdm(disable=True)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Those that are filled."""
        return self.partial.tensors

    @property
    def done(self) -> Tensor:
        """See `Partial`."""
        return self.partial.done

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around all passes and what is made of them: a bar, and whatever ends them early leaves
        what is finished.

        Raises:
            Interrupted: on Ctrl-C.
        """
        begun, total = int(self.done.sum()), self.done.numel()
        quiet = self.progress is not True
        bar = tqdm(total=total, initial=begun, unit=" requests", disable=quiet)
        try:
            with bar as self._bar:
                try:
                    yield
                finally:
                    self._save()
        except KeyboardInterrupt:
            # Also one that comes while the file is written, which is finished first.
            raise Interrupted(self.partial) from None

    def keep(
        self, at: tuple[int | list[int], ...], values: Mapping[str, Tensor], *, axis: int = -1
    ) -> None:
        """Write down what a pass has found, all of it or, if Ctrl-C comes first, nothing.

        Args:
            at: Places along the axes of `done`.
            values: Of the requests, for each tensor; but for the requests' own axis those of `done`
                come first.
            axis: Of the requests, in what is left behind the first axes.
        """
        *first, rows = at
        with uninterrupted():
            for name, found in values.items():
                part = self.tensors[name][tuple(first)].movedim(axis, -1)
                part[..., rows] = found.to("cpu", torch.float64).movedim(axis, -1)
            before = int(self.done.sum())
            self.done[tuple(at)] = True
            now = int(self.done.sum())
        self._bar.update(now - before)
        if not isinstance(self.progress, bool):
            self.progress(now, self.done.numel())
        if time.monotonic() > self._save_after:
            self._save()

    def _take(self, name: str, earlier: Partial) -> None:
        if (earlier.kind, earlier.recipe) != (self.partial.kind, self.partial.recipe):
            raise ValueError(
                f"{name} holds another run ({earlier!r}); model, requests, directions and "
                "everything else that the numbers depend on must be the same to go on"
            )
        shapes = [
            {one: tuple(found.shape) for one, found in {**of.tensors, "done": of.done}.items()}
            for of in (earlier, self.partial)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} is damaged: it has {shapes[0]} in place of {shapes[1]}")
        for one, values in earlier.tensors.items():
            own = self.tensors[one]
            own.copy_(torch.where(own.isnan(), values.to(own), own))
        self.done.logical_or_(earlier.done)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        began = time.monotonic()
        with uninterrupted():
            self.partial.save(self.checkpoint)
        ended = time.monotonic()
        self._save_after = ended + max(_SAVE_EVERY, _SHARE * (ended - began))
