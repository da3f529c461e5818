"""circuitsvis, made safe: in a frame of its own that can neither reach the page nor the network.

The library puts tokens into the page as HTML, loses everything at the first NaN, and loads itself
from the network. Here its bundle is read from the installed package, once for all widgets of a
page; tokens are escaped or visible text; and whatever is not finite is marked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.views.colour import Scale
from regap_interp.views.text import brief, visible

LARGEST = 4_000_000
"""Characters of the data of one widget."""
_HEIGHT = 560
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class _Widget:
    component: str
    data: str
    """JSON without `<`."""


@dataclass(frozen=True, repr=False)
class Interactive:
    """Widgets of circuitsvis with the scripts that draw them; add two to show them in one page.

    It holds 1.3 MB of scripts: clear the output before a notebook is committed.
    """

    widgets: tuple[_Widget, ...]

    def __add__(self, other: "Interactive") -> "Interactive":
        """Both, one below the other, with one copy of the scripts."""
        return Interactive(self.widgets + other.widgets)

    def __repr__(self) -> str:
        """What it holds, on one line."""
        return f"Interactive({', '.join(widget.component for widget in self.widgets)})"

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.page())}" '
            f'style="width:100%;height:{_HEIGHT}px;border:0;background:#ffffff"></iframe>'
        )

    def page(self) -> str:
        """A whole page. Its policy forbids loading anything."""
        parts = "".join(
            f'<div id="widget-{index}"></div>\n<script>CircuitsVis.render("widget-{index}", '
            f"CircuitsVis.{widget.component}, {widget.data});</script>\n"
            for index, widget in enumerate(self.widgets)
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
            f"<title>circuitsvis</title>\n<script>{_bundle()}</script>\n</head>\n"
            f'<body style="background:#ffffff;color:#1f2430">\n{parts}</body>\n</html>\n'
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file."""
        path = Path(path)
        path.write_text(self.page(), encoding="utf-8")
        return path


def attention_heads(
    patterns: Float[Tensor, "head query key"], tokens: Sequence[str], heads: Sequence[str]
) -> Interactive:
    """Attention heads, large when one is chosen.

    Raises:
        ValueError: There are fewer queries than keys, or the data would be larger than `LARGEST`.
    """
    if patterns.shape[1] != patterns.shape[2]:
        raise ValueError(
            f"patterns have shape {tuple(patterns.shape)} (head, query, key); circuitsvis draws "
            "as many queries as keys"
        )
    return _widget(
        "AttentionHeads",
        attention=_finite(patterns),
        tokens=[brief(token, 16) for token in tokens],  # drawn on a canvas: text as it is
        attentionHeadNames=[
            _marked(visible(name), pattern) for name, pattern in zip(heads, patterns, strict=True)
        ],
        maskUpperTri=not patterns.triu(1).nan_to_num(0).any(),
        **_colours(patterns),
    )


def coloured_tokens(values: Float[Tensor, "token"], tokens: Sequence[str]) -> Interactive:
    """Tokens in the colours of their values.

    Raises:
        ValueError: The data would be larger than `LARGEST`.
    """
    texts = [_marked(visible(t), v) for t, v in zip(tokens, values, strict=True)]
    # This component takes tokens for HTML.
    return _widget(
        "ColoredTokens",
        tokens=[escape(t) for t in texts],
        values=_finite(values),
        **_colours(values),
    )


def _widget(component: str, **data: Any) -> Interactive:
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    if len(text) > LARGEST:
        raise ValueError(
            f"{component} would hold {len(text):,} characters, more than {LARGEST:,}; show fewer "
            "heads or tokens, or the static view"
        )
    return Interactive((_Widget(component, text),))


def _colours(values: Tensor) -> dict[str, Any]:
    scale = Scale.of(values)
    ends = {"negativeColor": scale.fill(-scale.limit), "positiveColor": scale.fill(scale.limit)}
    return {**ends, "minValue": -scale.limit, "maxValue": scale.limit}


def _finite(values: Tensor) -> Any:
    """Three decimals; 0 where a value is not finite, which `_marked` tells."""
    return (values.double().nan_to_num(0, 0, 0) * 1000).round().div(1000).tolist()


def _marked(text: str, values: Tensor) -> str:
    missing = int((~torch.as_tensor(values).isfinite()).sum())
    return f"{text} ({missing} not finite)" if missing else text


@cache
def _bundle() -> str:
    try:
        script = files("circuitsvis").joinpath("dist/cdn/iife.js").read_text(encoding="utf-8")
    except ImportError as error:
        raise ImportError(
            "interactive views need circuitsvis, which is not installed: "
            "pip install 'regap-interp[views]'"
        ) from error
    # Within a script element, these would end or confuse it; in a string of JavaScript they mean
    # the same.
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
