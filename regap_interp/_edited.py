"""Which edits a pass runs under, in one line, so that states under different ones stay apart."""

import hashlib
import json

import torch
from torch import Tensor

from model_adapters import Adapter
from model_adapters.tracer import lock_of
from regap_interp._reading import prefill_edits
from regap_interp.graph.engine import engine_of, is_steered
from regap_interp.graph.graph import Graph
from regap_interp.graph.serial import to_json


def digest_of_edits(adapter: Adapter, graph: Graph | None) -> str | None:
    """sha256 in hex over all edits of a prompt's pass, installed ones first; None without any.

    Raises:
        GraphError: An edit that cannot be written down, such as one with a node of your own.
    """
    with lock_of(adapter.module):
        installed = engine_of(adapter).graphs if is_steered(adapter) else []
        edits = [edit for one in installed for edit in one.edits if edit.phase != "decode"]
    edits += prefill_edits(graph)
    if not edits:
        return None
    written, tensors = to_json(Graph(*edits))
    digest = hashlib.sha256(json.dumps(written, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name};".encode())
        digest.update(_raw(tensors[name]))
    return digest.hexdigest()


def _raw(value: Tensor) -> bytes:
    # numpy has no bfloat16.
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
