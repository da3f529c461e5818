"""A graph as a drawing: SVG, and HTML for notebooks. No scripts, no other files.

Colours are explicit, on a background of the drawing's own, so it reads in light and dark
notebooks; every box also says in words what it is. Names are escaped.
"""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from regap_interp.graph.layout import (
    HEADING,
    LINE,
    NOTCH,
    PAD,
    RULER,
    Layout,
    Placed,
    Point,
    Rect,
    layout,
)
from regap_interp.graph.picture import Kind, Picture, picture
from regap_interp.graph.words import printable

if TYPE_CHECKING:
    from regap_interp.graph.graph import Graph

_INK, _FAINT, _PAPER = "#1f2430", "#667085", "#ffffff"
_LANE, _BETWEEN, _RULE = "#f2f4f8", "#ffffff", "#d0d5dd"
_COLOURS: dict[Kind, tuple[str, str]] = {
    "read": ("#0072b2", "#e3f0f9"),
    "edit": ("#d55e00", "#fdeadb"),
    "value": ("#667085", "#f2f4f8"),
    "gate": ("#00795a", "#def3ec"),
}
"""Line and fill; the hues are told apart by colour-blind readers."""
_HEADINGS: dict[Kind, str] = {
    "read": "READ",
    "edit": "EDIT",
    "value": "VALUE",
    "gate": "\u25c6 GATE",
}


def draw_svg(graph: "Graph") -> str:
    """The graph as a standalone SVG drawing.

    Passes are lanes with the layers from left to right; the pass that the graph edits is the last.
    Reads and edits stand at their layers, computed values between the lanes. What repeats over
    three or more layers is one box.
    """
    seen = picture(graph)
    return _svg(seen, layout(seen))


def draw_html(graph: "Graph") -> str:
    """The drawing for a notebook, with its boxes in words below.

    The drawing is an image, which notebooks show even where they distrust inline SVG.
    """
    seen = picture(graph)
    placed = layout(seen)
    data = base64.b64encode(_svg(seen, placed).encode()).decode()
    items = "".join(f"<li>{escape(line)}</li>" for line in _in_words(seen))
    return (
        f'<div style="overflow-x:auto;background:{_PAPER};color:{_INK};padding:4px">'
        f'<img alt="{escape(_title(seen))}" width="{placed.width:.0f}" '
        f'height="{placed.height:.0f}" style="max-width:none" '
        f'src="data:image/svg+xml;base64,{data}"/>'
        f'<details style="font-size:12px"><summary>In words</summary><ul>{items}</ul></details>'
        "</div>"
    )


def _svg(seen: Picture, placed: Layout) -> str:
    width, height = f"{placed.width:.0f}", f"{placed.height:.0f}"
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" '
            'font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="12">',
            f"<title>{escape(_title(seen))}</title>",
            f"<desc>{escape(' '.join(_in_words(seen)))}</desc>",
            f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
            *_bands(placed),
            *_wires(placed),
            *(part for one in placed.boxes for part in _box(one)),
            "</svg>",
        ]
    )


def _bands(placed: Layout) -> Iterator[str]:
    for band in placed.bands:
        colour = _LANE if band.is_pass else _BETWEEN
        yield _rect(band.rect, f'rx="6" fill="{colour}"')
        x, y = band.rect.x + PAD, band.rect.y + PAD + LINE / 2
        style = f'fill="{_INK}" font-weight="bold"' if band.is_pass else f'fill="{_FAINT}"'
        yield from _text(x, y, band.name, style)
    lanes = [band.rect for band in placed.bands if band.is_pass]
    for column, strip in placed.columns:
        middle = strip.x + strip.width / 2
        for y in (strip.y + RULER - PAD, strip.bottom - PAD + 4):
            style = f'fill="{_FAINT}" text-anchor="middle"'
            yield from _text(middle, y, [printable(column.label)], style)
        for lane in lanes:
            yield (
                f'<path d="M{middle:.1f} {lane.y:.1f}V{lane.bottom:.1f}" stroke="{_RULE}" '
                'stroke-dasharray="2 4"/>'
            )
    if placed.columns:
        x, y = placed.bands[0].rect.x + PAD, placed.columns[0][1].y + RULER - PAD
        yield from _text(x, y, ["layers \u2192"], f'fill="{_FAINT}"')


def _wires(placed: Layout) -> Iterator[str]:
    for wire in placed.wires:
        colour, _ = _COLOURS[placed.boxes[wire.source].box.kind]
        x, y = wire.points[-1]
        yield (
            f'<path d="{_path(wire.points[:-1])}L{x - 6:.1f} {y:.1f}" fill="none" '
            f'stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'
            f'<path d="M{x:.1f} {y:.1f}l-7 -3.5v7z" fill="{colour}"/>'
        )


def _box(placed: Placed) -> Iterator[str]:
    box, rect = placed.box, placed.rect
    line, fill = _COLOURS[box.kind]
    style = f'fill="{fill}" stroke="{line}" stroke-width="{2.6 if box.is_output else 1.2}"'
    yield f"<g><title>{escape(printable('; '.join(box.lines)))}</title>"
    x = rect.x + PAD
    if box.kind == "gate":
        x += NOTCH
        middle, inset = rect.height / 2, NOTCH
        yield (
            f'<path d="M{rect.x:.1f} {rect.y + middle:.1f}l{inset} {-middle:.1f}'
            f"h{rect.width - 2 * inset:.1f}l{inset} {middle:.1f}l{-inset} {middle:.1f}"
            f'h{2 * inset - rect.width:.1f}z" {style}/>'
        )
    else:
        yield _rect(rect, f'rx="4" {style}')
    heading = _HEADINGS[box.kind] + (" \u00b7 OUTPUT" if box.is_output else "")
    small = f'fill="{line}" font-size="10" font-weight="bold"'
    yield from _text(x, rect.y + PAD + HEADING / 2, [heading], small)
    y = rect.y + PAD + HEADING + LINE / 2 + 2
    yield from _text(x, y, placed.lines, f'fill="{_INK}"')
    yield "</g>"


def _text(x: float, y: float, lines: Sequence[str], style: str) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield f'<text x="{x:.1f}" y="{y + index * LINE:.1f}" {style}>{escape(line)}</text>'


def _rect(rect: Rect, style: str) -> str:
    return (
        f'<rect x="{rect.x:.1f}" y="{rect.y:.1f}" width="{rect.width:.1f}" '
        f'height="{rect.height:.1f}" {style}/>'
    )


def _path(points: Sequence[Point]) -> str:
    start, *steps = points
    return f"M{start[0]:.1f} {start[1]:.1f}" + "".join(f"L{x:.1f} {y:.1f}" for x, y in steps)


def _title(seen: Picture) -> str:
    edits = sum(box.kind == "edit" for box in seen.boxes)
    outputs = sum(box.is_output for box in seen.boxes)
    return (
        f"Intervention graph: {len(seen.passes)} pass(es), {edits} box(es) of edits, "
        f"{outputs} of outputs"
    )


def _in_words(seen: Picture) -> list[str]:
    """A line for each box, pass by pass."""
    found = []
    lanes: list[tuple[int | None, str]] = list(enumerate(seen.passes))
    if seen.has_main:
        lanes.insert(-1, (None, "between the passes"))
    else:
        lanes.append((None, "after the passes"))
    for lane, name in lanes:
        boxes = sorted(
            (box for box in seen.boxes if box.lane == lane),
            key=lambda box: (box.depth, box.column is not None and box.column, box.order),
        )
        found += [printable(f"{name}: {box.kind} {'; '.join(box.lines)}.") for box in boxes]
    return found
