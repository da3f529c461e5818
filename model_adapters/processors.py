"""Processors and tokenizers saved with a model."""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_adapters.errors import LoadError
from model_adapters.registry import processor_class
from model_adapters.source import Source

_UNBUILDABLE = (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""What transformers raises for a processor whose files or packages are not all there."""


def read_processor(source: Source) -> tuple[Any, str]:
    """The processor saved with the model, or None and why there is none.

    Raises:
        LoadError: when its files are there and cannot be followed.
    """
    import transformers

    file = source.file("processor_config.json") or source.file("preprocessor_config.json")
    if file is None:
        return _text_processor(source)
    name = _processor_name(source, Path(file))
    own = processor_class(name)
    if own is not None:
        try:
            return own.from_pretrained(Path(file).parent), ""
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise LoadError(
                f"{name} could not be built from {Path(file).parent}: "
                f"{type(error).__name__} {error}; its save_pretrained writes what is needed"
            ) from error
    try:
        found = transformers.AutoProcessor.from_pretrained(
            source.name, trust_remote_code=source.trust_remote_code, **source.where
        )
    except _UNBUILDABLE as error:
        why = " ".join(str(error).split())
        return None, f"{name or 'its processor'} could not be built here: {why}{_hint()}"
    if not hasattr(found, "apply_chat_template"):
        return None, f"its {type(found).__name__} cannot read chats: load(model, processor=...)"
    return found, ""


def read_tokenizer(source: Source) -> tuple[Any, str]:
    """The tokenizer saved with the model, or None and why there is none."""
    import transformers

    if source.file("tokenizer_config.json") is None:
        return None, f"{source.name} was saved without one: load(model, processor=...)"
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            source.name, trust_remote_code=source.trust_remote_code, **source.where
        )
    except _UNBUILDABLE as error:
        why = " ".join(str(error).split())
        return None, f"its tokenizer could not be built here: {why}"
    return found, ""


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor; a tokenizer given as processor is its own."""
    if processor is None:
        return None
    return getattr(processor, "tokenizer", processor)


def _text_processor(source: Source) -> tuple[Any, str]:
    if "vision_config" in source.config or "audio_config" in source.config:
        return None, f"{source.name} was saved without one: load(model, processor=...)"
    return read_tokenizer(source)


def _processor_name(source: Source, file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file.name} of {source.name} is no JSON file: {error}") from error
    name = config.get("processor_class") if isinstance(config, Mapping) else config
    if not isinstance(name, str | None):
        raise LoadError(
            f'{file.name} of {source.name} must be {{"processor_class": "name", ...}}; it holds '
            f"{name!r}"
        )
    return name or ""


def _hint() -> str:
    if importlib.util.find_spec("torchvision") is None:
        return (
            " (video processors, and many image processors, need torchvision: pip install "
            "torchvision, from the same index as torch)"
        )
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f" (the torchvision here does not load: {error}; pip install torch torchvision, both "
            "from one index)"
        )
    return ""
