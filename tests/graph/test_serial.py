"""A written graph comes back the same, and a file that is no graph is refused with the reason."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from regap_interp.directions import Direction, Origin
from regap_interp.graph.edits import Edit, add, remove, replace, set_coordinate
from regap_interp.graph.errors import GraphError
from regap_interp.graph.fields import EDIT_FIELDS, OPS
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import (
    Arithmetic,
    Constant,
    Lens,
    Node,
    Read,
    Steps,
    lens,
    modality,
    read,
    select,
    walk,
)
from regap_interp.graph.serial import FORMAT, from_json, load_graph, save_graph, to_json


def direction(seed: int, origin: Origin | None = None) -> Direction:
    """A direction of 6 numbers that no short decimal can express."""
    numbers = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction(numbers[0], numbers[1], 10, 10, origin)


def test_where_a_direction_was_read_is_kept_and_left_out_where_it_is_not_known() -> None:
    full = Origin("model", "resid_post", 7, position="-2", edits="abc")
    for origin, extra in ((full, {"position": "-2", "edits": "abc"}), (Origin("m", "z", 7), {})):
        written, tensors = to_json(Graph(add("resid_post", 7, direction(0, origin))))
        assert written["nodes"]["constant1"]["origin"].items() >= extra.items()
        assert len(written["nodes"]["constant1"]["origin"]) == 3 + len(extra)
        again = from_json(written, tensors).edits[0].value
        assert isinstance(again, Constant) and again.origin == origin


def regap() -> Graph:
    """The adaptive correction: a weak probe decides how strong the correction is."""
    drift = direction(0, Origin("model", "resid_post", 7))
    refusal = direction(1, Origin("model", "resid_post", 14))
    weak = add("resid_post", 7, drift, strength=-0.5)
    probed = read("resid_post", 14, under=[weak]).project(refusal)
    gain = probed - read("resid_post", 14, under=[]).project(refusal)
    strong = add("resid_post", 7, drift, strength=select(gain >= 3.0, -1.5, -0.5))
    return Graph(strong, outputs={"gain": gain})


def everything() -> Graph:
    """Every op, every position rule, every phase."""
    one, two = direction(2), direction(3, Origin("model", "embed", None))
    mean = read("resid_mid", 2, at="image").mean()
    number = (mean.project(one, unit="norm") * 2 + 1 / mean.project(one.vector)).clip(
        -1.0, 1.0
    ) - 0.1
    gate = (number > 0) & (number < 9) | ~(number >= 1) & (number <= float("inf"))
    early = replace("mlp_out", 1, read("mlp_out", 1, under=()), at=[0, -1], strength=0.25)
    heads = read("z", 2, head=1, under=[early, add("embed", None, torch.ones(6))])
    edits = (
        add("resid_pre", 3, one, strength=select(gate & modality("audio"), number, 0)),
        add("resid_pre", 3, two.vector.float(), at=Steps(2, 5), keep_norm=True),
        add("resid_post", 3, one.vector.half(), at="text", phase="both"),
        add("resid_post", 3, one.vector.bfloat16(), at=Steps(), strength=-0.0),
        remove("attn_out", 3, two, centred=True, at="video"),
        set_coordinate("resid_post", 3, one, to=number, at=4),
        replace("z", 3, heads, head=0),
        early,
    )
    outputs: dict[str, Node] = {
        "number": number,
        "lens": lens(read("resid_post", 3), [5, 7]),
        "all tokens": lens(read("resid_post", 3)),
        "logits": read("logits"),
        "later": read("resid_post", 3, at=Steps(1, None)),
    }
    return Graph(*edits, outputs=outputs)


def through_json(graph: Graph) -> Graph:
    """The graph written as text and made again."""
    obj, tensors = to_json(graph)
    return from_json(json.loads(json.dumps(obj, allow_nan=False)), tensors)


def same(first: Any, second: Any, pairs: dict[int, Any]) -> bool:
    """Whether two graphs have the same structure, numbers, bits and sharing."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Node | Edit):
        if id(first) in pairs:
            return pairs[id(first)] is second
        pairs[id(first)] = second
        names = [field.name for field in dataclasses.fields(first)]
        return all(same(getattr(first, n), getattr(second, n), pairs) for n in names)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(
            same(a, b, pairs) for a, b in zip(first, second, strict=True)
        )
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second and str(first) == str(second)


def same_graph(first: Graph, second: Graph) -> bool:
    """`same` on whole graphs, both ways: neither has sharing that the other lacks."""
    return list(first.outputs) == list(second.outputs) and all(
        same(
            (*a.edits, *a.outputs.values()),
            (*b.edits, *b.outputs.values()),
            {},
        )
        for a, b in ((first, second), (second, first))
    )


@pytest.mark.parametrize("make", [regap, everything, lambda: Graph()])
def test_a_graph_comes_back_the_same(make: Callable[[], Graph], tmp_path: Path) -> None:
    graph = make()

    save_graph(graph, tmp_path / "graph.safetensors")

    assert same_graph(graph, through_json(graph))
    assert same_graph(graph, load_graph(tmp_path / "graph.safetensors"))


def test_a_loaded_graph_gives_the_same_bits(
    random_organism: Adapter, left: Batch, vectors: Tensor, tmp_path: Path
) -> None:
    weak = add("resid_post", 2, vectors[0], strength=-0.5)
    after, before = (read("resid_post", 5, under=under) for under in ([weak], []))
    gain = (after - before).project(vectors[1])
    graph = Graph(
        add("resid_post", 2, vectors[0], strength=select(gain >= 0.0, -1.5, -0.5)),
        outputs={"gain": gain, "later": read("resid_post", 6)},
    )
    save_graph(graph, tmp_path / "graph")

    first = graph.run(random_organism, left, logits=True)
    second = load_graph(tmp_path / "graph").run(random_organism, left, logits=True)

    assert all(torch.equal(first[name], second[name]) for name in graph.outputs)
    assert first.logits is not None and second.logits is not None
    assert torch.equal(first.logits, second.logits)


def test_every_op_of_the_vocabulary_is_in_that_graph() -> None:
    obj, _ = to_json(everything())

    assert {one["op"] for one in obj["nodes"].values()} == set(OPS)
    for kind, _, fields in OPS.values():
        declared = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        assert declared - {"op"} == set(fields)
    assert {field.name for field in dataclasses.fields(Edit)} - {"op"} == set(EDIT_FIELDS)


def test_the_written_form_can_be_read_by_a_person() -> None:
    obj, _ = to_json(regap())

    assert list(obj["nodes"])[-1] == obj["edits"]["add1"]["strength"] == "select1"
    assert obj["main"] == ["add1"]
    assert obj["nodes"]["read1"]["under"] == ["add2"]
    assert obj["nodes"]["read2"]["under"] == []
    assert obj["nodes"]["gate1"] == {"op": ">=", "left": "value1", "right": "number2"}
    assert obj["outputs"] == {"gain": "value1"}


def test_an_edit_of_the_main_pass_stays_the_edit_of_the_probe() -> None:
    weak = add("resid_post", 1, torch.ones(4))
    graph = Graph(weak, outputs={"after": read("resid_post", 2, under=[weak])})

    loaded = through_json(graph)

    after = loaded.outputs["after"]
    assert isinstance(after, Read)
    assert after.under == (loaded.edits[0],)


def test_a_tensor_used_twice_is_written_once() -> None:
    shared = direction(0)
    graph = Graph(
        remove("resid_post", 1, shared, centred=True),
        remove("resid_post", 2, shared, centred=True),
    )

    _, tensors = to_json(graph)

    assert len(tensors) == 2  # the vector and the centre


@pytest.mark.usefixtures("as_users_run_it")
def test_whole_numbers_of_other_libraries_become_plain_ones() -> None:
    three, two = np.int64(3), torch.tensor(2)
    node = Lens(Read("resid_post", three, (three, -1)), (two,))  # type: ignore[arg-type]

    loaded = through_json(Graph(outputs={"it": node})).outputs["it"]

    assert isinstance(loaded, Lens) and isinstance(loaded.of, Read)
    assert (loaded.of.layer, loaded.of.at, loaded.tokens) == (3, (3, -1), (2,))


def test_equal_graphs_give_equal_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        save_graph(everything(), tmp_path / name)

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["first", "second"]


def test_views_and_shared_memory_can_be_saved(tmp_path: Path) -> None:
    states = torch.randn(3, 8)
    graph = Graph(*(add("resid_post", 1, row) for row in states), add("resid_post", 1, states.T[0]))

    save_graph(graph, tmp_path / "graph")

    assert same_graph(graph, load_graph(tmp_path / "graph"))


def test_a_long_chain_needs_no_recursion() -> None:
    value: Node = read("resid_post", 1).project(direction(0))
    for _ in range(1200):
        value = value + 1

    loaded = through_json(Graph(outputs={"value": value})).outputs["value"]

    assert len(list(walk([loaded]))) == len(list(walk([value])))


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    class Mine(Node):
        pass

    refused: list[tuple[Node, str]] = [
        (Mine(), "class Mine cannot be written"),
        (Arithmetic("@", read("embed"), read("embed")), "with op '@' cannot be written"),
        (read("embed") * float("nan"), "NaN"),
        (Constant(torch.tensor([float("inf")])), "not finite"),
        (Constant(torch.tensor([1])), r"torch\.int64"),
    ]
    for node, message in refused:
        with pytest.raises(GraphError, match=message):
            save_graph(Graph(outputs={"it": node}), tmp_path / "graph")
    assert not list(tmp_path.iterdir())


Change = Callable[[dict[str, Any]], Any]

HOSTILE: dict[str, tuple[Change, str]] = {
    "format": (lambda g: g.update(format="other"), '"format" is not'),
    "version": (lambda g: g.update(version=2), "version 2, this library reads version 1"),
    "version type": (lambda g: g.update(version=True), "version True"),
    "missing part": (lambda g: g.pop("main"), 'has no "main"'),
    "extra part": (lambda g: g.update(code="x"), "field 'code' that is unknown"),
    "nodes": (lambda g: g.update(nodes=[]), '"nodes" is'),
    "op": (lambda g: g["nodes"]["read1"].update(op="eval"), "node 'read1' has the op 'eval'"),
    "op type": (lambda g: g["nodes"]["read1"].update(op=["read"]), "has the op"),
    "edit op": (lambda g: g["edits"]["add1"].update(op="read"), "edit 'add1' has the op 'read'"),
    "no object": (lambda g: g["nodes"].update(read1="read"), "expected an object with an"),
    "missing field": (lambda g: g["nodes"]["read1"].pop("at"), "node 'read1' has no \"at\""),
    "extra field": (lambda g: g["edits"]["add1"].update(x=1), "edit 'add1' has a field 'x'"),
    "unknown node": (
        lambda g: g["nodes"]["project1"].update(of="read9"),
        "node 'project1', \"of\" is 'read9', which is not the id of a node",
    ),
    "an edit as a node": (lambda g: g["nodes"]["project1"].update(of="add2"), "not the id of a"),
    "a node as an edit": (lambda g: g.update(main=["read1"]), "not the id of an edit"),
    "unhashable id": (lambda g: g.update(main=[["add1"]]), "not the id of an edit"),
    "not a constant": (lambda g: g["nodes"]["project1"].update(vector="read1"), "of a constant"),
    "under": (lambda g: g["nodes"]["read1"].update(under="add2"), "expected a list of ids"),
    "circle": (lambda g: g["nodes"]["value1"].update(left="value1"), "value1 -> value1 goes in"),
    "circle through an edit": (
        lambda g: g["nodes"]["read1"].update(under=["add1"]),
        "goes in a circle",
    ),
    "layer": (lambda g: g["nodes"]["read1"].update(layer="14"), "\"layer\" is '14'; expected"),
    "layer bool": (lambda g: g["nodes"]["read1"].update(layer=True), '"layer" is True'),
    "span": (lambda g: g["nodes"]["read1"].update(at="everywhere"), '"at" is'),
    "no positions": (lambda g: g["nodes"]["read1"].update(at=[]), '"at" is'),
    "steps": (lambda g: g["edits"]["add1"].update(at={"start": 1}), 'no "stop"'),
    "phase": (lambda g: g["nodes"]["read1"].update(phase="both"), '"phase" is'),
    "unit": (lambda g: g["nodes"]["project1"].update(unit="degrees"), "stream, norm"),
    "number": (lambda g: g["nodes"]["number1"].update(value="3"), "expected a finite number"),
    "number NaN": (lambda g: g["nodes"]["number1"].update(value=float("nan")), "finite number"),
    "number huge": (lambda g: g["nodes"]["number1"].update(value=10**400), "finite number"),
    "keep_norm": (lambda g: g["edits"]["add1"].update(keep_norm=1), "expected true or false"),
    "to": (lambda g: g["edits"]["add1"].update(to="number1"), "belongs to set_coordinate"),
    "origin": (
        lambda g: g["nodes"]["constant1"]["origin"].update(layer="7"),
        "\"layer\" is '7'",
    ),
    "tensor name": (
        lambda g: g["nodes"]["constant1"]["value"].update(tensor="tensor9"),
        "no tensor 'tensor9'",
    ),
    "tensor shape": (
        lambda g: g["nodes"]["constant1"]["value"].update(shape=[7]),
        r"has shape \[6\], the graph says \[7\]",
    ),
    "unused node": (
        lambda g: g["nodes"].update(number9={"op": "number", "value": 1}),
        "'number9' is used by nothing",
    ),
    "unused edit": (lambda g: g.update(main=[]), "used by nothing"),
    "one name for both": (
        lambda g: g["nodes"].update(add1={"op": "number", "value": 1}),
        "'add1' names both",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_changed_file_is_refused_with_the_reason(case: str) -> None:
    change, message = HOSTILE[case]
    obj, tensors = to_json(regap())
    change(obj)

    with pytest.raises(GraphError, match=message):
        from_json(obj, tensors)


def test_logic_needs_its_gates() -> None:
    gate = read("resid_post", 1).project(direction(0)) > 0
    obj, tensors = to_json(Graph(outputs={"not": ~gate}))
    obj["nodes"]["gate2"]["of"] = ["gate1", "gate1"]

    with pytest.raises(GraphError, match="'not' of 2 gates; expected one gate"):
        from_json(obj, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("tensor1"), "no tensor 'tensor1'"),
        (lambda t: t.update(more=torch.ones(2)), "tensor 'more' is used by nothing"),
        (lambda t: t.update(tensor1=t["tensor1"] * torch.nan), "not finite"),
        (lambda t: t.update(tensor1=t["tensor1"].float()), "has dtype float32"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(
    change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    obj, tensors = to_json(regap())
    change(tensors)

    with pytest.raises(GraphError, match=message):
        from_json(obj, tensors)


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    obj, tensors = to_json(regap())
    text = json.dumps(obj)
    twice = text.replace('"outputs": {', '"outputs": {"gain": "value1", ')
    contents = {
        "no safetensors file": b"not a file of tensors",
        "holds tensors but no graph": safetensors.torch.save(tensors),
        "cannot be read": safetensors.torch.save(tensors, {FORMAT: text[:-1]}),
        "recursion": safetensors.torch.save(tensors, {FORMAT: "[" * 100_000}),
        '"gain" stands twice': safetensors.torch.save(tensors, {FORMAT: twice}),
        "is no graph": safetensors.torch.save(tensors, {FORMAT: "[]"}),
    }

    for message, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(GraphError, match=message):
            load_graph(path)
    with pytest.raises(FileNotFoundError):
        load_graph(tmp_path / "missing")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    path = tmp_path / "graph"
    save_graph(regap(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)

    with pytest.raises(OSError, match="no space left"):
        save_graph(everything(), path)

    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["graph"]
