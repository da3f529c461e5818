"""Where the boxes and lines of a graph's drawing go, in pixels.

Passes are lanes with the layers from left to right: probes at the top, the pass that the graph
edits at the bottom, and between them the values computed from what is read. Lines run only in the
gutters beside boxes and in the channels above and below the computed values, each source on a
track of its own, so that no line passes behind a box and none hides another.
"""

import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from regap_interp.graph.picture import Box, Column, Picture
from regap_interp.graph.words import printable

CHARACTER = 7.3
"""Width of one at the size that boxes are written in."""
LINE = 16.0
PAD = 9.0
HEADING = 15.0
NOTCH = 14.0
"""How far the pointed ends of a gate reach in."""
LABEL = 138.0
"""Width of the names of the passes."""
RULER = 24.0
_MARGIN = 12.0
_GAP = 10.0
_TRACK = 6.0
_ARROW = 12.0
_IN_BOX, _IN_LABEL, _MOST_LINES = 26, 16, 10

Point = tuple[float, float]
Gutter = tuple[Literal["pass", "between"], int]
"""Left of the column of this number."""
Channel = Literal["top", "bottom"]


@dataclass(frozen=True)
class Rect:
    """A rectangle; y grows downwards."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Its right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower side."""
        return self.y + self.height


@dataclass(frozen=True)
class Placed:
    """A box where it is drawn, its lines wrapped."""

    box: Box
    rect: Rect
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Wire:
    """A line from one box to another, in horizontal and vertical steps."""

    source: int
    target: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Band:
    """A lane of the drawing, or the strip of computed values, with its name."""

    name: tuple[str, ...]
    rect: Rect
    is_pass: bool


@dataclass(frozen=True)
class Layout:
    """A drawing, all but its colours."""

    width: float
    height: float
    bands: tuple[Band, ...]
    columns: tuple[tuple[Column, Rect], ...]
    """Each with the strip that it takes in every lane."""
    boxes: tuple[Placed, ...]
    wires: tuple[Wire, ...]


def layout(picture: Picture) -> Layout:
    """Place everything in a picture."""
    return _Placement(picture).place()


class _Placement:
    def __init__(self, picture: Picture) -> None:
        self.picture, self.boxes = picture, picture.boxes
        self.lines = [_wrapped(box.lines, _IN_BOX, _MOST_LINES) for box in self.boxes]
        self.columns = sorted({box.column for box in self.boxes if box.column is not None})
        self.depth = max((box.depth for box in self.boxes), default=0)
        self.above = len(picture.passes) - picture.has_main
        self.vertical: dict[Gutter, dict[int, int]] = defaultdict(dict)
        self.horizontal: dict[Channel, dict[int, int]] = defaultdict(dict)
        self.routes = [
            (source, target, self._route(source, target))
            for target, box in enumerate(self.boxes)
            for source in box.inputs
        ]

    def place(self) -> Layout:
        lane_x, lane_end = self._columns("pass", [self._width(c) for c in self.columns])
        depths = range(1, self.depth + 1)
        between_x, between_end = self._columns("between", [self._depth_width(d) for d in depths])
        width = max(lane_end, between_end) + _MARGIN
        bands, tops, channels, height = self._rows(width)
        rects = self._rects(lane_x, between_x, tops)
        strips = tuple(
            (column, Rect(x, _MARGIN, self._width(column), height - 2 * _MARGIN))
            for column, x in zip(self.columns, lane_x, strict=True)
        )
        placed = zip(self.boxes, rects, self.lines, strict=True)
        gutters: dict[Gutter, float] = {
            ("pass", i): x for i, x in enumerate(self._starts("pass", lane_x, lane_end))
        }
        gutters |= {
            ("between", i): x
            for i, x in enumerate(self._starts("between", between_x, between_end), start=1)
        }
        wires = tuple(
            Wire(source, target, self._points(source, target, route, rects, gutters, channels))
            for source, target, route in self.routes
        )
        return Layout(
            width,
            height,
            tuple(bands),
            strips,
            tuple(Placed(box, rect, lines) for box, rect, lines in placed),
            wires,
        )

    def _route(self, source: int, target: int) -> list[Gutter | Channel]:
        """Gutters and channels that a line takes, in turn; claims its track in each."""
        start, end = self.boxes[source], self.boxes[target]
        leave: Gutter = ("between", start.depth + 1)
        if start.column is not None:
            leave = ("pass", self.columns.index(start.column) + 1)
        arrive: Gutter = ("between", end.depth)
        if end.column is not None:
            arrive = ("pass", self.columns.index(end.column))
        near = start.lane == end.lane
        if leave == arrive and near:
            route: list[Gutter | Channel] = [leave]
        else:
            first, last = self._channel(start, end), self._channel(end, start)
            crossing: list[Gutter | Channel] = [first]
            if first != last:  # across the strip of computed values, left of all of them
                crossing = [first, ("between", 1), last]
            route = [leave, *crossing, arrive]
        for part in route:
            if isinstance(part, str):
                self.horizontal[part].setdefault(source, len(self.horizontal[part]))
            else:
                self.vertical[part].setdefault(source, len(self.vertical[part]))
        return route

    def _channel(self, box: Box, other: Box) -> Channel:
        """The channel beside a box, on the way to another."""
        if self.depth == 0:
            return "top"
        if box.lane is not None:
            return "top" if box.lane < self.above else "bottom"
        if other.lane is not None:
            return self._channel(other, box)
        return "bottom" if self.picture.has_main else "top"

    def _columns(
        self, kind: Literal["pass", "between"], widths: Sequence[float]
    ) -> tuple[list[float], float]:
        """Left sides of columns, and where the gutter after the last one ends."""
        x, first, found = _MARGIN + LABEL, int(kind == "between"), []
        for index, width in enumerate(widths, start=first):
            x += self._gutter((kind, index))
            found.append(x)
            x += width
        return found, x + self._gutter((kind, len(widths) + first))

    def _starts(
        self, kind: Literal["pass", "between"], lefts: Sequence[float], end: float
    ) -> list[float]:
        """Left sides of the gutters, one more than columns."""
        first = int(kind == "between")
        starts = [x - self._gutter((kind, i)) for i, x in enumerate(lefts, start=first)]
        return [*starts, end - self._gutter((kind, len(lefts) + first))]

    def _gutter(self, gutter: Gutter) -> float:
        return _GAP + _TRACK * len(self.vertical.get(gutter, ())) + _ARROW

    def _rows(
        self, width: float
    ) -> tuple[list[Band], dict[int | None, float], dict[Channel, float], float]:
        """Bands, the upper side of every band's boxes, of the channels, and the height."""
        y = _MARGIN + RULER
        bands: list[Band] = []
        tops: dict[int | None, float] = {}
        channels: dict[Channel, float] = {}

        def band(name: str, lane: int | None) -> None:
            nonlocal y
            lines = _wrapped([name], _IN_LABEL, _MOST_LINES)
            stacks = self._stacks(lane)
            least = len(lines) * LINE + 2 * PAD
            tall = max([least, *(_GAP + sum(h + _GAP for h in heights) for heights in stacks)])
            rect = Rect(_MARGIN, y, width - 2 * _MARGIN, tall)
            bands.append(Band(lines, rect, lane is not None))
            tops[lane] = y + _GAP
            y += tall

        def channel(name: Channel) -> None:
            nonlocal y
            channels[name] = y + _GAP
            tracks = len(self.horizontal.get(name, ()))
            y += 2 * _GAP + _TRACK * tracks if bands or tracks else 0

        for lane in range(self.above):
            if lane:
                y += _GAP
            band(self.picture.passes[lane], lane)
        channel("top")
        if self.depth:
            band("computed from what is read", None)
            channel("bottom")
        if self.picture.has_main:
            band(self.picture.passes[-1], self.above)
        return bands, tops, channels, y + RULER + _MARGIN

    def _stacks(self, lane: int | None) -> Iterable[list[float]]:
        stacks: dict[object, list[float]] = defaultdict(list)
        for box, lines in zip(self.boxes, self.lines, strict=True):
            if box.lane == lane:
                stacks[box.column or box.depth].append(_height(lines))
        return stacks.values()

    def _rects(
        self,
        lane_x: Sequence[float],
        between_x: Sequence[float],
        tops: dict[int | None, float],
    ) -> list[Rect]:
        rects: dict[int, Rect] = {}
        bottoms: dict[object, float] = {}
        for index in sorted(range(len(self.boxes)), key=lambda i: (self.boxes[i].order, i)):
            box, tall = self.boxes[index], _height(self.lines[index])
            stack = (box.lane, box.column or box.depth)
            y = bottoms.get(stack, tops[box.lane])
            if box.column is not None:
                x, wide = lane_x[self.columns.index(box.column)], self._width(box.column)
            else:
                x, wide = between_x[box.depth - 1], self._depth_width(box.depth)
            rects[index] = Rect(x, y, wide, tall)
            bottoms[stack] = y + tall + _GAP
        return [rects[index] for index in range(len(self.boxes))]

    def _points(
        self,
        source: int,
        target: int,
        route: Sequence[Gutter | Channel],
        rects: Sequence[Rect],
        gutters: dict[Gutter, float],
        channels: dict[Channel, float],
    ) -> tuple[Point, ...]:
        start, end = rects[source], rects[target]
        inputs = self.boxes[target].inputs
        # Lines leave a little above the middle and arrive below it: never on the same height.
        leave_y = start.y + start.height / 2 - 4
        arrive_y = end.y + end.height * (inputs.index(source) + 1) / (len(inputs) + 1) + 4
        points = [(_side(self.boxes[source], start, leave_y, right=True), leave_y)]
        for part in route:
            x, y = points[-1]
            if isinstance(part, str):
                points.append((x, channels[part] + _TRACK * self.horizontal[part][source]))
            else:
                points.append((gutters[part] + _GAP + _TRACK * self.vertical[part][source], y))
        points.append((points[-1][0], arrive_y))
        points.append((_side(self.boxes[target], end, arrive_y, right=False), arrive_y))
        return tuple(points)

    def _width(self, column: Column) -> float:
        boxes = zip(self.boxes, self.lines, strict=True)
        wanted = [_text_width(lines) for box, lines in boxes if box.column == column]
        return max([len(column.label) * CHARACTER, 84.0, *wanted])

    def _depth_width(self, depth: int) -> float:
        boxes = zip(self.boxes, self.lines, strict=True)
        return max(
            _text_width(lines) + (2 * NOTCH if box.kind == "gate" else 0)
            for box, lines in boxes
            if box.depth == depth
        )


def _side(box: Box, rect: Rect, y: float, *, right: bool) -> float:
    """Where the left or right side of a box is at a height: gates are pointed."""
    half = rect.height / 2
    inset = NOTCH * min(abs(y - rect.y - half) / half, 1) if box.kind == "gate" else 0.0
    return rect.right - inset if right else rect.x + inset


def _height(lines: Sequence[str]) -> float:
    return HEADING + LINE * len(lines) + 1.5 * PAD


def _text_width(lines: Sequence[str]) -> float:
    return 2 * PAD + CHARACTER * max(map(_columns_of, lines), default=0)


def _columns_of(text: str) -> int:
    """Characters, those of double width as two."""
    return sum(1 + (unicodedata.east_asian_width(one) in "WF") for one in text)


def _wrapped(lines: Iterable[str], width: int, most: int) -> tuple[str, ...]:
    found = [part for line in lines for part in textwrap.wrap(printable(line), width)]
    return tuple(found if len(found) <= most else [*found[: most - 1], "\u2026"])
