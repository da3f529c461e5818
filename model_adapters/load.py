"""From a name, a folder, a hub id or a built model to an adapter."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_adapters.adapter import Adapter
from model_adapters.errors import AdapterError, LoadError
from model_adapters.families import Family, family_of, part_of
from model_adapters.processors import read_processor, read_tokenizer, tokenizer_of
from model_adapters.registry import EMBEDDED
from model_adapters.source import Placement, Source


def load(
    model: str | Path | nn.Module,
    *,
    processor: Any = None,
    family: Family | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> Adapter:
    """Load a model and check it.

    Of a checkpoint that also holds a talker and a vocoder only the language part is loaded.

    Args:
        model: the name of an embedded model ("organism"), a folder written by `save_pretrained`, a
            hub id, or an already built transformers model, which is put in evaluation mode.
        processor: turns chats into inputs; by default the one saved with the model. A tokenizer
            will do for a text-only model.
        family: where the parts of the model are, for a model whose `model_type` has no entry in
            `model_adapters.families`; takes the place of the entry if there is one.
        dtype: precision to compute in, such as "bfloat16". By default what the folder's config
            asks for (`"regap_interp": {"compute_dtype": ...}`), else that of the stored weights.
        device_map: where to put the weights, as in transformers: "auto", "cuda:0", or a dictionary
            of module paths to devices, "cpu" and "disk" included. Needs accelerate.
        max_memory: how much each device may hold under `device_map="auto"`.
        offload_folder: where weights that the map puts on disk are written if the checkpoint's own
            files cannot serve.
        quantization_config: how to quantise while loading, such as
            `transformers.BitsAndBytesConfig(load_in_4bit=True)`. Checkpoints saved quantised need
            none.
        revision: branch, tag or commit of a hub id; every file is taken from it, code included.
        local_files_only: look for a hub id only among the files already downloaded.
        trust_remote_code: run the code that comes with the checkpoint, for models that
            transformers has no class for. Read that code first, and pin it by `revision`.

    Raises:
        LoadError: when there is no such model, weights are missing, the family is unknown, a
            package is missing, or the model needs code of its own that is not trusted.
        SelfCheckError: when the model does not obey the identities of its sites.
    """
    placement = Placement(device_map, max_memory, offload_folder, quantization_config)
    if isinstance(model, nn.Module):
        if (dtype, revision) != (None, None) or placement != Placement() or trust_remote_code:
            raise LoadError(
                "dtype, device_map, max_memory, offload_folder, quantization_config, revision and "
                "trust_remote_code are for models still to be loaded"
            )
        return _wrap_built(model, processor, family)
    source = Source(
        model,
        revision=revision,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    # A model shipped with the package loads in a moment: no bar for that.
    with _no_bar() if str(model) in EMBEDDED else contextlib.nullcontext():
        module = source.model(dtype, placement, family)
    missing = ""
    if processor is None:
        processor, missing = read_processor(source)
    tokenizer = tokenizer_of(processor) or read_tokenizer(source)[0]
    entry = family or family_of(module.config)
    if entry.prepare is not None:
        entry.prepare(module, tokenizer)
    if tokenizer is not None and module.generation_config.eos_token_id is None:
        # Without it every answer would run on to the limit.
        module.generation_config.eos_token_id = tokenizer.eos_token_id
    try:
        return Adapter(
            module,
            entry,
            processor=processor,
            tokenizer=tokenizer,
            model_id=str(model),
            missing_processor=missing,
        )
    except AdapterError:
        raise
    except (KeyError, RuntimeError) as error:
        devices = set(getattr(module, "hf_device_map", {}).values())
        if len(devices) < 2 and "disk" not in devices:
            raise
        raise LoadError(
            f"{model} does not run with this device_map: {type(error).__name__} {error}. Some "
            "models use a weight outside the module that it belongs to, which offloading does not "
            "notice: keep encoders on a device, and a head where the embedding is that it shares"
        ) from error


def _wrap_built(model: Any, processor: Any, family: Family | None) -> Adapter:
    if not hasattr(model, "config"):
        raise LoadError(f"{type(model).__name__} is not a transformers model: it has no config")
    part = part_of(model.config.model_type)
    if part is not None:
        model = getattr(model, part.attribute)
    return Adapter(
        model.eval(),
        family or family_of(model.config),
        processor=processor,
        tokenizer=tokenizer_of(processor),
        model_id=model.config._name_or_path or type(model).__name__,
    )


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
