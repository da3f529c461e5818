"""Whether a call was written as the opening of a `with` block."""

import ast
import functools
import sys
import threading
from types import FrameType

from nnsight.tracing.tracer import Tracer

PARSING = threading.RLock()
"""Held to parse source: CPython 3.11 fails now and then where two threads do it at once."""


def calling_frame(file: str) -> FrameType:
    """The frame that called into `file`, past any run-time type checker in between."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename in (file, __file__) or _checks(frame)):
        frame = frame.f_back
    assert frame is not None
    return frame


def _checks(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "").partition(".")[0]
    generated = frame.f_code.co_filename.startswith("<@beartype")
    return generated or module in ("jaxtyping", "beartype")


def opens_with(frame: FrameType, method: str) -> bool:
    """Whether the line that `frame` executes opens a `with` on a call of `method`.

    A call inside a one-line `with` on something else does not count:
    `with torch.no_grad(): answer = adapter.generate(...)`.
    """
    return _opens(frame.f_code.co_filename, frame.f_lineno, method)


@functools.cache
def _opens(filename: str, line: int, method: str) -> bool:
    tracer = Tracer()
    source = tracer.source(filename)
    with PARSING:
        node = tracer.parse(source, line) if source else None
    return node is not None and any(_calls(i.context_expr, method) for i in node.items)


def _calls(expression: ast.expr, method: str) -> bool:
    if not isinstance(expression, ast.Call):
        return False
    function = expression.func
    return isinstance(function, ast.Attribute) and function.attr == method
