"""HTML that cannot run anything: a few elements and attributes, all text escaped."""

import base64
import re
from html import escape

_ELEMENTS = frozenset(
    ("bdi", "br", "div", "figcaption", "figure", "i", "img", "span", "table", "td", "th", "tr")
)
_ATTRIBUTES = frozenset(("alt", "class", "scope", "src", "style", "title", "width"))
_EMPTY = frozenset(("br", "img"))
_STYLE = re.compile(r"[a-zA-Z0-9#%.,:;()\s-]*")

INK, FAINT, RULE, PAPER = "#1f2430", "#5d6679", "#d0d5dd", "#ffffff"
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace"
LITERAL = "tex2jax_ignore mathjax_ignore"
"""The class of elements whose text notebooks must not read as formulas."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""For pages: nothing runs, nothing is loaded."""


class Markup(str):
    """Text that is HTML already, made by `element`."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str) -> Markup:
    """An element of a page. Children that are no `Markup` are text, and escaped.

    Raises:
        ValueError: The element or an attribute is not one of the few that views need; a style holds
            more than plain declarations; a source is not an image in the page itself; a class is
            not `LITERAL`.

    >>> from regap_interp.views.markup import element
    >>> print(element("span", "<script>", style="color:#1f2430"))
    <span style="color:#1f2430">&lt;script&gt;</span>
    """
    if tag not in _ELEMENTS:
        raise ValueError(f"<{tag}> is not an element of views; those are {sorted(_ELEMENTS)}")
    for name, value in attributes.items():
        if name not in _ATTRIBUTES:
            raise ValueError(f"{name} is not an attribute of views: {sorted(_ATTRIBUTES)}")
        if name == "style" and ("url(" in value or not _STYLE.fullmatch(value)):
            raise ValueError(f"style {value!r} is more than declarations")
        if name == "src" and not value.startswith(("data:image/png;", "data:image/jpeg;")):
            raise ValueError(f"source {value[:30]!r} is not a PNG or JPEG within the page")
        if name == "class" and value != LITERAL:
            raise ValueError(f"class {value!r} could take up a style of the page; use LITERAL")
    head = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    if tag in _EMPTY:
        return Markup(f"<{tag}{head}/>")
    return Markup(f"<{tag}{head}>{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """Parts one after another; those that are no `Markup` are escaped."""
    return Markup("".join(p if isinstance(p, Markup) else escape(p) for p in parts))


def image_source(data: bytes, kind: str) -> str:
    """An image file ("png" or "jpeg") as the source of an `img`."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def page(title: str, body: Markup) -> str:
    """A whole page around views. Its own policy forbids scripts and loading."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>\n'
        f"<title>{escape(title)}</title>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
