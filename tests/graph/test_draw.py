"""A graph's drawing: complete, without overlaps, and harmless whatever the names are."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations, pairwise

import pytest
import torch

from regap_interp.directions import Direction, Origin
from regap_interp.graph.draw import draw_html, draw_svg
from regap_interp.graph.edits import add, remove, replace, set_coordinate
from regap_interp.graph.graph import Graph
from regap_interp.graph.layout import Layout, Rect, layout
from regap_interp.graph.nodes import Node, Steps, lens, modality, read, select
from regap_interp.graph.picture import picture
from regap_interp.graph.words import describe_edit, expression, layers, pass_name, positions

EVIL = "<script>alert(1)</script></svg>\"'&\x00\x1b\u202e\ud800]]>"


def direction(layer: int | None = None) -> Direction:
    """A direction, measured at `layer` if one is given."""
    origin = None if layer is None else Origin("model", "resid_post", layer)
    return Direction(torch.ones(4).double(), torch.zeros(4).double(), 2, 2, origin)


def regap() -> Graph:
    """A weak probe decides at layer 14 how strong the correction at layer 7 is."""
    weak = add("resid_post", 7, direction(7), strength=-0.5)
    probed = read("resid_post", 14, under=[weak]).project(direction(14))
    gain = probed - read("resid_post", 14, under=[]).project(direction(14))
    strength = select(gain >= 3.0, -1.5, -0.5)
    return Graph(add("resid_post", 7, direction(7), strength=strength), outputs={"gain": gain})


def ablation() -> Graph:
    """A direction removed at three sites of twelve layers."""
    sites, axis = ("resid_pre", "attn_out", "mlp_out"), direction()
    return Graph(
        *(remove(site, layer, axis) for layer in range(12) for site in sites),
        outputs={"logits": read("logits")},
    )


def crowded() -> Graph:
    """Several probes, nested gates, hostile names, wide characters, lines across all lanes."""
    c = read("resid_mid", 5, at="image").mean().project(direction())
    probe = add("embed", None, direction(), strength=c.clip(-1.0, 1.0))
    far = read("resid_post", 20, under=[probe]).project(direction())
    gate = (c > 1) & ~modality("image") | (far - c < 2)
    strength = select(gate, 1, 0)
    wide: Node = far * 2
    return Graph(
        add("resid_post", 9, direction(), strength=(0.3 * c).clip(-1.0, 1.0)),
        set_coordinate("resid_post", 9, direction(), to=c * 2, at="text"),
        add("mlp_out", 12, torch.ones(4), at=Steps(2, 5), strength=strength, keep_norm=True),
        replace("resid_pre", 3, read("resid_pre", 3, under=[])),
        remove("z", 6, direction(), head=2, strength=strength),
        outputs={EVIL: c, "驅動" * 30: wide, "logits": read("logits"), "x": far / c},
    )


GRAPHS = {
    "regap": regap,
    "ablation": ablation,
    "crowded": crowded,
    "empty": lambda: Graph(),
    "steer": lambda: Graph(add("resid_post", 1, direction())),
    "capture": lambda: Graph(outputs={f"layer {k}": read("resid_post", k) for k in range(48)}),
    "differences": lambda: Graph(
        outputs={
            f"{k}": read("resid_post", k + 1).project(direction(k + 1))
            - read("resid_post", k).project(direction(k))
            for k in range(6)
        }
    ),
}


def words_of(svg: str) -> str:
    """The text that a reader sees, each line of a box after the other."""
    return " ".join(one.text or "" for one in ET.fromstring(svg).iter() if one.tag.endswith("text"))


def overlap(first: Rect, second: Rect) -> bool:
    """Whether two rectangles share more than an edge."""
    across = first.x < second.right and second.x < first.right
    return across and first.y < second.bottom and second.y < first.bottom


def placed(name: str) -> Layout:
    """The layout of an example."""
    return layout(picture(GRAPHS[name]()))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_drawing_is_valid_and_loads_nothing(name: str) -> None:
    svg = draw_svg(GRAPHS[name]())

    root = ET.fromstring(svg)
    assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {
        "svg", "title", "desc", "rect", "path", "text", "g",
    }  # fmt: skip
    assert not any("href" in key or key.startswith("on") for e in root.iter() for key in e.attrib)
    assert root.find("{*}title") is not None
    assert root.find("{*}desc") is not None
    assert draw_svg(GRAPHS[name]()) == svg  # ids and order do not depend on the run


@pytest.mark.parametrize("name", GRAPHS)
def test_no_box_overlaps_another_and_all_lie_inside(name: str) -> None:
    found = placed(name)

    rects = [one.rect for one in found.boxes]
    assert not any(overlap(a, b) for a, b in combinations(rects, 2))
    for rect in [*rects, *(band.rect for band in found.bands)]:
        assert rect.x >= 0 and rect.y >= 0
        assert rect.right <= found.width and rect.bottom <= found.height
    for one in found.boxes:
        inside = [b for b in found.bands if overlap(b.rect, one.rect)]
        assert len(inside) == 1
        assert inside[0].rect.y < one.rect.y and one.rect.bottom < inside[0].rect.bottom


@pytest.mark.parametrize("name", GRAPHS)
def test_lines_run_beside_boxes_and_never_on_another_source_s_line(name: str) -> None:
    found = placed(name)

    steps = [(wire, start, end) for wire in found.wires for start, end in pairwise(wire.points)]
    for wire, (x, y), (to_x, to_y) in steps:
        assert x == to_x or y == to_y
        line = Rect(min(x, to_x), min(y, to_y), abs(x - to_x) or 0.01, abs(y - to_y) or 0.01)
        assert line.x >= 0 and line.right <= found.width and line.bottom <= found.height
        for number, one in enumerate(found.boxes):
            gate = one.box.kind == "gate" and number in (wire.source, wire.target)
            assert gate or not overlap(line, one.rect)
    for (a, a1, a2), (b, b1, b2) in combinations(steps, 2):
        if a.source != b.source and a1[0] == a2[0] == b1[0] == b2[0]:
            low, high = max(min(a1[1], a2[1]), min(b1[1], b2[1])), 0.0
            high = min(max(a1[1], a2[1]), max(b1[1], b2[1]))
            assert low >= high, "two vertical lines of different sources share a track"


@pytest.mark.parametrize("name", GRAPHS)
def test_text_fits_into_its_box(name: str) -> None:
    for one in placed(name).boxes:
        assert one.lines
        assert max(map(len, one.lines)) * 7.3 <= one.rect.width


def test_every_input_has_its_line() -> None:
    found = placed("regap")

    kinds = [
        (found.boxes[one.source].box.kind, found.boxes[one.target].box.kind) for one in found.wires
    ]
    assert sorted(kinds) == [
        ("gate", "edit"), ("read", "value"), ("read", "value"),
        ("value", "gate"), ("value", "value"), ("value", "value"),
    ]  # fmt: skip


def test_regap_reads_as_two_probes_and_a_gate() -> None:
    svg = draw_svg(regap())

    assert [band.name[0] for band in placed("regap").bands] == [
        "bare model", "probe: add", "computed from", "main pass",
    ]  # fmt: skip
    text = words_of(svg)
    assert "strength = -1.5 if gain ≥ 3 else -0.5" in text
    assert "gain = a - b" in text
    assert "coordinate of resid_post[14] (probe)" in text
    assert "◆ GATE" in text


def test_layers_run_from_left_to_right() -> None:
    columns = [column.label for column, _ in placed("crowded").columns]

    assert columns == [
        "embed", "layer 3", "layer 5", "layer 6", "layer 9", "layer 12", "layer 20", "logits",
    ]  # fmt: skip
    lefts = [strip.x for _, strip in placed("crowded").columns]
    assert lefts == sorted(lefts)


def test_an_ablation_of_36_sites_is_one_box() -> None:
    boxes = picture(ablation()).boxes

    assert [box.kind for box in boxes if box.kind == "edit"] == ["edit"]
    text = words_of(draw_svg(ablation()))
    assert "remove a fixed direction at resid_pre, attn_out, mlp_out · layers 0-11" in text
    assert placed("ablation").width < 700


def test_what_differs_over_layers_is_not_drawn_together() -> None:
    strengths = [add("resid_post", k, direction(), strength=float(k)) for k in range(1, 5)]
    depth_gain = [read("resid_post", k).project(direction(k)) for k in (3, 9)]
    graph = Graph(*strengths, outputs={"depth gain": depth_gain[1] - depth_gain[0]})

    boxes = picture(graph).boxes

    assert sum(box.kind == "edit" for box in boxes) == 4
    assert sum(box.kind == "read" for box in boxes) == 2


def test_a_lens_on_every_layer_is_one_line_of_boxes() -> None:
    outputs: dict[str, Node] = {f"l{k}": lens(read("resid_post", k), [1, 2]) for k in range(24)}

    boxes = picture(Graph(outputs=outputs)).boxes

    assert [box.lines[0] for box in boxes] == [
        "resid_post · layers 0-23",
        "a = lens of resid_post[0-23] on 2 token(s)",
    ]
    assert boxes[1].lines[1] == "outputs: l0 … l23 (24)"


class Elements(HTMLParser):
    """Every element with its attributes, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_notebook_form_holds_the_same_drawing(name: str) -> None:
    html = draw_html(GRAPHS[name]())

    ET.fromstring(html)
    elements = Elements(html).found
    assert {tag for tag, _ in elements} <= {"div", "img", "details", "summary", "ul", "li"}
    (image,) = [attributes for tag, attributes in elements if tag == "img"]
    assert image["alt"]
    kind, _, data = (image["src"] or "").partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == draw_svg(GRAPHS[name]())


def test_hostile_names_stay_text() -> None:
    svg, html = draw_svg(crowded()), draw_html(crowded())

    for text in (svg, html):
        assert "<script" not in text
        assert not re.search(r"[\x00-\x1f\u202e\ud800]", text)
        text.encode()
    assert svg.count("</svg>") == 1
    assert "“<script>a" in words_of(svg)


def test_a_notebook_shows_the_drawing() -> None:
    assert regap()._repr_html_() == draw_html(regap())


def test_expressions_read_like_the_code_that_made_them() -> None:
    x, y = read("resid_post", 3).project(direction(3)), read("resid_pre", 9, under=[], at="image")
    z = y.mean().project(direction(), unit="norm")
    names = {x: "x", z: "z"}

    def said(node: Node) -> str:
        return expression(node, names)

    assert said((x + z) * 2 - (x - z)) == "(x + z) \u00d7 2 - (x - z)"
    assert said(-x / (x * z)) == "-x / (x \u00d7 z)"
    assert said(x.clip(-1.0, 2.5)) == "x clipped to [-1, 2.5]"
    assert said((x > 1) & ((z <= 2) | ~modality("audio"))) == (
        "x > 1 and (z ≤ 2 or not row is audio)"
    )
    assert said(select(x >= 3, -1.5, z)) == "-1.5 if x ≥ 3 else z"
    assert expression(x) == "coordinate of resid_post[3] along its direction"
    assert expression(z) == (
        "relative coordinate of mean of resid_pre[9] at image tokens of the bare model "
        "along a fixed direction"
    )
    assert expression(lens(y)) == (
        "lens of resid_pre[9] at image tokens of the bare model on all tokens"
    )


def test_long_expressions_stay_short_and_need_no_recursion() -> None:
    chain: Node = read("resid_post", 1).project(direction())
    doubled: Node = chain
    for _ in range(1200):
        chain = chain + 1
    for _ in range(100):
        doubled = doubled + doubled

    assert len(expression(chain)) <= 240
    assert len(expression(doubled)) <= 240
    assert placed_width(Graph(outputs={"chain": chain})) < 1000


def placed_width(graph: Graph) -> float:
    """Width of a graph's drawing in pixels."""
    return layout(picture(graph)).width


def test_edits_and_passes_in_words() -> None:
    weak = add("resid_post", 7, direction(7), strength=-0.5)
    clamp = set_coordinate("resid_mid", 3, direction(), to=2, at=(0, -1), phase="both")

    assert describe_edit(weak) == (
        "add direction of resid_post[7] to resid_post[7], whole prompt, strength = -0.5"
    )
    assert describe_edit(clamp) == (
        "set the coordinate of resid_mid[3] along a fixed direction to 2, "
        "positions 0, -1 and every decoding step"
    )
    assert describe_edit(replace("z", 1, torch.ones(4), head=3)) == (
        "replace z[1] head 3 by a fixed direction, last prompt token"
    )
    assert pass_name(None) == "main pass"
    assert pass_name(()) == "bare model"
    assert pass_name([weak, clamp]) == (
        "probe: add resid_post[7] \u00d7-0.5 and set coordinate resid_mid[3] \u00d71"
    )
    assert layers([3, 1, 2, 9, 11, 12]) == "1-3, 9, 11-12"
    assert [positions(Steps(a, b)) for a, b in ((1, None), (3, None), (2, 3), (2, 5))] == [
        "every decoding step",
        "decoding steps from 3",
        "decoding step 2",
        "decoding step 2 to 4",
    ]
