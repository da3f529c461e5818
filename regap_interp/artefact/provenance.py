"""Hashes and versions that tell later where a direction came from."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model_adapters import Adapter

_PACKAGES = ("torch", "transformers", "nnsight", "regap-interp")
# What loading writes into a config; it says nothing about the model.
_INCIDENTAL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


def data_fingerprint(items: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """One sha256 (hex) over ids and contents of the items a direction is made from.

    The order of the items does not matter. Contents are chats or anything made of strings,
    numbers, bytes, lists, mappings, arrays, tensors, PIL images and `Path`s (the file's bytes
    count; a path given as a string counts as a string).

    Raises:
        ValueError: No items, an id given twice, or a content of another type.

    >>> from regap_interp import data_fingerprint
    >>> one = data_fingerprint({"a": ["x", 1], "b": ["y", 2]})
    >>> one == data_fingerprint([("b", ["y", 2]), ("a", ["x", 1])])
    True
    >>> one == data_fingerprint({"a": ["x", 2], "b": ["y", 2]})
    False
    """
    pairs = list(items.items() if isinstance(items, Mapping) else items)
    ids = [name for name, _ in pairs]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f"{len(ids)} items with {len(set(ids))} different ids; give at least one item, and "
            "every id once"
        )
    digest = hashlib.sha256()
    for name, content in sorted(pairs, key=lambda pair: pair[0]):
        _feed(digest, name)
        _feed(digest, content)
    return digest.hexdigest()


def template_hash(adapter: Adapter) -> str | None:
    """sha256 of the chat template that prompts are made with; None where there is none."""
    for source in (adapter.processor, adapter.tokenizer):
        template = getattr(source, "chat_template", None)
        if template is not None:
            text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
            return hashlib.sha256(text.encode()).hexdigest()
    return None


def config_hash(adapter: Adapter) -> str:
    """sha256 of the model's config, without names, versions and the precision of the weights."""
    text = json.dumps(_without_incidentals(adapter.module.config.to_dict()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def processor_name(adapter: Adapter) -> str | None:
    """Class of the processor; None where there is none."""
    return None if adapter.processor is None else type(adapter.processor).__name__


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what a state is."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _without_incidentals(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _without_incidentals(inner)
            for key, inner in value.items()
            if key not in _INCIDENTAL
        }
    if isinstance(value, list | tuple):
        return [_without_incidentals(inner) for inner in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _feed(digest: Any, value: Any) -> None:
    """Add a value with its type and length, so that different contents never look the same."""
    if isinstance(value, Mapping):
        _mark(digest, "mapping", len(value))
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        _mark(digest, "list", len(value))
        for one in value:
            _feed(digest, one)
    else:
        kind, raw = _raw(value)
        _mark(digest, kind, len(raw))
        digest.update(raw)


def _raw(value: Any) -> tuple[str, bytes]:
    if value is None or isinstance(value, bool | int | float):
        return type(value).__name__, repr(value).encode()
    if isinstance(value, str):
        return "str", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, Path):
        return "file", value.read_bytes()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds each of its values.
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes()
    if isinstance(value, Image.Image):
        colours = bytes(value.getpalette() or ())
        return f"image {value.mode} {value.size}", value.tobytes() + colours
    raise ValueError(
        f"cannot hash a {type(value).__name__}; give contents as strings, numbers, bytes, lists, "
        "mappings, arrays, tensors, PIL images or paths"
    )


def _mark(digest: Any, kind: str, length: int) -> None:
    digest.update(f"{kind}:{length};".encode())
