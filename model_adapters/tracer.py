"""nnsight's tracers with a lock, gradients off unless asked for, and errors in our words."""

import contextlib
import re
import threading
import warnings
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import Any, Literal, NamedTuple

import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.intervention.tracer import InterleavingTracer, Invoker
from torch import nn

from model_adapters.errors import SiteError

_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_HANDING_OUT = threading.Lock()
_REQUEST = re.compile(r"'(?P<path>.+)\.(?P<end>input|output)\.i(?P<visit>\d+)'")


def lock_of(module: nn.Module) -> Any:
    """The one lock of a model, however many adapters wrap it: it runs one trace at a time."""
    with _HANDING_OUT:
        return _LOCKS.setdefault(module, threading.RLock())


class AdapterTracer(InterleavingTracer):
    """A trace of an adapter. Its `invoke` takes a `Batch` or encodings as keyword arguments."""

    def __init__(self, envoy: Any, fn: Any, *args: Any, grad: bool = False, **kwargs: Any) -> None:
        super().__init__(envoy, fn, *args, **kwargs)
        self.grad = grad

    def invoke(self, *args: Any, **kwargs: Any) -> Invoker:
        """Add requests to the one forward of this trace; the block sees its own rows only.

        Without arguments the block sees the whole batch.

        Raises:
            InputError: for inputs that the model cannot take.
        """
        if not args and not kwargs:
            return Invoker(self)
        return Invoker(self, **self.envoy._inputs_of(args, kwargs))

    def execute(self, code: CodeType) -> None:
        """Run the block with the model, one thread at a time."""
        with self.envoy._running(grad=self.grad):
            super().execute(code)


class Step(NamedTuple):
    """One forward pass of a generation."""

    number: int
    """0 is the prefill; sites hold the whole prompt there and one position afterwards."""
    phase: Literal["prefill", "decode"]


class GenerationTracer(AdapterTracer):
    """The trace of a generate call. Without `steps()` a block sees the prefill only."""

    def __init__(self, envoy: Any, config: Any, finish: Any, **kwargs: Any) -> None:
        super().__init__(envoy, self._generate, **kwargs)
        self.config, self.finish = config, finish
        self.generation: Any = None
        """The `Generation`, once the block has ended."""

    def steps(self) -> Iterator[Step]:
        """The passes of the model in order, each named; sites in the loop are those of the pass.

        The number of passes is known only when rows have ended, so the loop is cut short there,
        and statements of the block after it do not run. Read results from `generation`.
        """
        root = self.envoy
        for number in self.iter[:]:
            # Binds the step even where the block then reads nothing.
            _ = root.inputs
            yield Step(number, "decode" if number else "prefill")

    def execute(self, code: CodeType) -> None:
        """Run the block; outrunning the last step is how `steps()` ends."""
        with warnings.catch_warnings():
            path = re.escape(self.envoy.path)
            warnings.filterwarnings("ignore", rf"'{path}\.input\.i\d+' was never reached")
            super().execute(code)

    def _generate(self, **inputs: Any) -> torch.Tensor:
        tokens: torch.Tensor = self.envoy._generate(self.config, **inputs)
        self.generation = self.finish(tokens, inputs["input_ids"].shape[1])
        return tokens


@contextlib.contextmanager
def translated(site_names: Any, absent_towers: dict[str, str]) -> Iterator[None]:
    """Turn nnsight's one message for every missed value into one that says what to do.

    Args:
        site_names: from (path, "input" or "output") to the site's name.
        absent_towers: paths of encoders, and what they encode.
    """
    try:
        yield
    except (OutOfOrderError, UserWarning) as error:
        found = _REQUEST.search(str(error))
        if found is None:
            raise
        path, end, visit = found["path"], found["end"], found["visit"]
        site = site_names.get((path, end), f"{path}.{end}")
        towers = [
            kind for tower, kind in absent_towers.items() if (path + ".").startswith(tower + ".")
        ]
        if towers:
            reason = (
                f"this encoder runs in the prefill only, for requests with {towers[0]}; or the "
                "block had already gone past it"
            )
        else:
            reason = (
                "the model had gone past it, or never ran it in this pass. Ask for sites in the "
                "order in which the model reaches them: embed; per layer resid_pre, z, result, "
                "attn_out, resid_mid, mlp_out, resid_post; final_norm; logits. Use a separate "
                "`tracer.invoke()` block for each independent order"
            )
        raise SiteError(f"{site} could not be had in pass {visit}: {reason}.") from error
