"""A graph as JSON and tensors, and as one safetensors file. Nothing in it is ever executed.

The JSON names every node and edit once, so that what is shared stays shared::

    {"format": "regap_interp.graph", "version": 1,
     "nodes": {"read1": {"op": "read", "site": "resid_post", "layer": 14, ...},
               "project1": {"op": "project", "of": "read1", "vector": "constant1", ...}},
     "edits": {"add1": {"op": "add", "site": "resid_post", "layer": 7, ...}},
     "main": ["add1"],
     "outputs": {"gain": "project1"}}

`edits` holds those of the pass that the graph edits, listed in `main`, and those that only a
read's own pass has, listed in its `under`.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from regap_interp.graph import fields
from regap_interp.graph.edits import Edit
from regap_interp.graph.errors import GraphError
from regap_interp.graph.graph import Graph
from regap_interp.graph.nodes import Node, Read, walk
from regap_interp.graph.written import Decoder, Encoder

FORMAT = "regap_interp.graph"
VERSION = 1
_PARTS = ("format", "version", "nodes", "edits", "main", "outputs")


def to_json(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The graph as a JSON object, and the tensors it names.

    Nodes stand after what they are computed from. Tensors are the graph's own, not copies, each
    once however many constants hold it.

    Raises:
        GraphError: A number is NaN, a tensor is not finite, or a node is of a class of your own.
    """
    encoder = Encoder()
    main = [encoder.name_edit(edit) for edit in graph.edits]
    nodes = {}
    roots = [one for edit in graph.edits for one in edit.inputs()]
    for node in walk([*roots, *graph.outputs.values()]):
        if isinstance(node, Read):
            for edit in node.under or ():
                encoder.name_edit(edit)
        nodes[encoder.name_node(node)] = encoder.node(node)
    found = {
        "format": FORMAT,
        "version": VERSION,
        "nodes": nodes,
        "edits": {name: encoder.edit(edit) for edit, name in encoder.edits.items()},
        "main": main,
        "outputs": {name: encoder.name_node(node) for name, node in graph.outputs.items()},
    }
    return found, encoder.tensors


def from_json(obj: object, tensors: Mapping[str, Tensor]) -> Graph:
    """The graph that `to_json` wrote.

    Args:
        obj: The JSON object.
        tensors: The tensors it names; they are not copied.

    Raises:
        GraphError: It is not a graph of this version; names the node or edit and what to mend.
    """
    if not isinstance(obj, dict) or obj.get("format") != FORMAT:
        raise GraphError(f'this is no graph: "format" is not "{FORMAT}"')
    if type(obj.get("version")) is not int or obj["version"] != VERSION:
        raise GraphError(
            f"the graph has version {obj.get('version')!r}, this library reads version {VERSION}; "
            "save it again with the library that wrote it, or install that one"
        )
    fields.exact_keys("the graph", obj, _PARTS)
    for part, kind in (("nodes", dict), ("edits", dict), ("main", list), ("outputs", dict)):
        if not isinstance(obj[part], kind):
            raise GraphError(f'"{part}" is {fields.shown(obj[part])}, expected a {kind.__name__}')
    decoder = Decoder(obj["nodes"], obj["edits"], tensors)
    edits = [decoder.use("main", name, Edit) for name in obj["main"]]
    outputs = {
        label: decoder.use(f'output "{label}"', name, Node)
        for label, name in obj["outputs"].items()
    }
    decoder.check_all_used([*obj["main"], *obj["outputs"].values()])
    return Graph(*edits, outputs=outputs)


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph as one safetensors file, its JSON in the header, all of it or nothing.

    Equal graphs give equal bytes.

    Raises:
        GraphError: As in `to_json`.
        OSError: The file cannot be written.
    """
    found, tensors = to_json(graph)
    plain = {name: one.detach().cpu().contiguous().clone() for name, one in tensors.items()}
    # One entry of metadata: safetensors writes several in an order of its own.
    content = safetensors.torch.save(plain, metadata={FORMAT: json.dumps(found, allow_nan=False)})
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph of a file that `save_graph` wrote.

    Raises:
        GraphError: The file is damaged or holds something else.
        OSError: The file cannot be read.
    """
    with open(path, "rb"):  # a missing file is an OSError, not a damaged graph
        pass
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
            # Cloned out of the memory map: the file may change later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise GraphError(f"{os.fspath(path)} is no safetensors file: {error}") from error
    if text is None:
        raise GraphError(
            f"{os.fspath(path)} holds tensors but no graph; graphs are written by Graph.save"
        )
    try:
        obj = json.loads(text, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise GraphError(f"the graph in {os.fspath(path)} cannot be read: {error}") from error
    return from_json(obj, tensors)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise GraphError(f'"{twice}" stands twice in one object; names must be unique')
    return found
