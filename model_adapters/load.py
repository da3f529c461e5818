"""From a name, a folder, a hub id or a built model to an adapter."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from model_adapters.adapter import Adapter
from model_adapters.errors import LoadError
from model_adapters.family import family_of, part_of
from model_adapters.registry import EMBEDDED, processor_class


def load(
    model: str | Path | nn.Module,
    *,
    processor: Any = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Adapter:
    """Load a model and check it.

    Args:
        model: the name of an embedded model ("organism"), a folder written by `save_pretrained`, a
            hub id, or an already built transformers model, which is put in evaluation mode.
        processor: turns chats into inputs; by default the one saved with the model. A tokenizer
            will do for a text-only model.
        dtype: precision to compute in, such as "bfloat16". By default what the folder's config
            asks for (`"regap_interp": {"compute_dtype": ...}`), else that of the stored weights.
        device_map: where to put the weights, as in transformers.
        revision: branch, tag or commit of a hub id.
        local_files_only: look for a hub id only among the files already downloaded.

    Raises:
        LoadError: when there is no such model, weights are missing, or the family is unknown.
        SelfCheckError: when the model does not obey the identities of its sites.
    """
    if isinstance(model, nn.Module):
        if (dtype, device_map, revision) != (None, None, None):
            raise LoadError("dtype, device_map and revision are for models still to be loaded")
        return _wrap_built(model, processor)
    source = _Source(model, revision=revision, local_files_only=local_files_only)
    # A model shipped with the package loads in a moment: no bar for that.
    with _no_bar() if str(model) in EMBEDDED else contextlib.nullcontext():
        module = source.model(dtype, device_map)
    missing = ""
    if processor is None:
        processor, missing = source.processor()
    tokenizer = _tokenizer_of(processor) or source.tokenizer()
    if tokenizer is not None and module.generation_config.eos_token_id is None:
        # Without it every answer would run on to the limit.
        module.generation_config.eos_token_id = tokenizer.eos_token_id
    return Adapter(
        module,
        family_of(module.config),
        processor=processor,
        tokenizer=tokenizer,
        model_id=str(model),
        missing_processor=missing,
    )


def _wrap_built(model: Any, processor: Any) -> Adapter:
    if not hasattr(model, "config"):
        raise LoadError(f"{type(model).__name__} is not a transformers model: it has no config")
    part = part_of(model.config.model_type)
    if part is not None:
        model = getattr(model, part.attribute)
    return Adapter(
        model.eval(),
        family_of(model.config),
        processor=processor,
        tokenizer=_tokenizer_of(processor),
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


def _tokenizer_of(processor: Any) -> Any:
    """The tokenizer in a processor; a tokenizer given as processor is its own."""
    if processor is None:
        return None
    return getattr(processor, "tokenizer", processor)


def _hint() -> str:
    if importlib.util.find_spec("torchvision") is not None:
        return ""
    return (
        " (video processors, and many image processors, need torchvision: pip install torchvision, "
        "from the same index as torch)"
    )


class _Source:
    """A folder or hub repository with a model in it."""

    def __init__(self, model: str | Path, *, revision: str | None, local_files_only: bool) -> None:
        self.name = str(EMBEDDED.get(str(model), model))
        self.where = {"revision": revision or "main", "local_files_only": local_files_only}
        if str(model) in EMBEDDED and not Path(self.name).is_dir():
            raise LoadError(f"the weights of {model!r} are not in this installation ({self.name})")
        if isinstance(model, Path) and not model.is_dir():
            raise LoadError(f"there is no folder {str(model)!r}")
        self.config = self._read_config()

    def model(self, dtype: str | torch.dtype | None, device_map: Any) -> Any:
        """The model, or the language part of a larger checkpoint, all weights found."""
        import transformers

        part = part_of(self.config.get("model_type", ""))
        options: dict[str, Any] = {**self.where, "dtype": self._dtype(dtype)}
        if device_map is not None:
            options["device_map"] = device_map
        if part is not None:
            whole = transformers.AutoConfig.from_pretrained(self.name, **self.where)
            options["config"] = getattr(whole, part.config)
            model_class = self._class(part.model)
        else:
            model_class = self._class(next(iter(self.config.get("architectures") or ()), None))
        try:
            # Other formats are pickles, which run code as they load.
            module, report = model_class.from_pretrained(
                self.name,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
                **options,
            )
        except (OSError, SafetensorError) as error:
            raise LoadError(
                f"the weights of {self.name} could not be read; they must be there, whole, as "
                f"safetensors, which save_pretrained writes. The cause: {error}"
            ) from error
        absent = [*report["missing_keys"], *report["mismatched_keys"]]
        if absent:
            raise LoadError(
                f"{len(absent)} weights of {model_class.__name__} are not in {self.name}, or have "
                f"another shape, such as {absent[0]}; they would be random"
            )
        return module.eval()

    def _class(self, name: object) -> Any:
        import transformers

        if not isinstance(name, str):
            raise LoadError(
                f"the config.json of {self.name} does not name the class of its model; it needs "
                'a line such as "architectures": ["Qwen2ForCausalLM"]'
            )
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        if "auto_map" in self.config:
            raise LoadError(
                f"{self.name} brings its own code ({name}), which is never run; only classes of "
                "transformers are loaded"
            )
        raise LoadError(
            f"the config of {self.name} names the class {name!r}, which is no model that this "
            f"version of transformers ({transformers.__version__}) has"
        )

    def processor(self) -> tuple[Any, str]:
        """The processor saved with the model, or None and why there is none."""
        import transformers

        file = self._file("processor_config.json") or self._file("preprocessor_config.json")
        if file is None:
            return self._text_processor()
        name = self._processor_name(Path(file))
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
                self.name, trust_remote_code=False, **self.where
            )
        except (ImportError, OSError, ValueError) as error:
            return None, f"{name or 'its processor'} could not be built here: {error}{_hint()}"
        if not hasattr(found, "apply_chat_template"):
            return None, f"its {type(found).__name__} cannot read chats: load(model, processor=...)"
        return found, ""

    def _processor_name(self, file: Path) -> str:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoadError(f"{file.name} of {self.name} is no JSON file: {error}") from error
        name = config.get("processor_class") if isinstance(config, Mapping) else config
        if not isinstance(name, str | None):
            raise LoadError(
                f'{file.name} of {self.name} must be {{"processor_class": "name", ...}}; it holds '
                f"{name!r}"
            )
        return name or ""

    def tokenizer(self) -> Any:
        """The tokenizer saved with the model, or None."""
        import transformers

        if self._file("tokenizer_config.json") is None:
            return None
        return transformers.AutoTokenizer.from_pretrained(
            self.name, trust_remote_code=False, **self.where
        )

    def _text_processor(self) -> tuple[Any, str]:
        missing = f"{self.name} was saved without one: load(model, processor=...)"
        if "vision_config" in self.config or "audio_config" in self.config:
            return None, missing
        return self.tokenizer(), missing

    def _dtype(self, dtype: str | torch.dtype | None) -> str | torch.dtype:
        if dtype is None:
            ours = self.config.get("regap_interp") or {}
            dtype = ours.get("compute_dtype") if isinstance(ours, Mapping) else ours
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype in (None, "auto"):
            return "auto"
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise LoadError(
                f"{dtype!r} is no floating-point type of torch, such as 'float32' or 'bfloat16'"
            )
        return found

    def _file(self, name: str) -> str | None:
        from transformers.utils import cached_file

        found: str | None = cached_file(
            self.name,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **self.where,
        )
        return found

    def _read_config(self) -> dict[str, Any]:
        from transformers import PreTrainedConfig

        try:
            config, _ = PreTrainedConfig.get_config_dict(self.name, **self.where)
        except (OSError, ValueError) as error:
            known = ", ".join(repr(name) for name in EMBEDDED)
            raise LoadError(
                f"no model {self.name!r}: it is neither an embedded name ({known}), nor a folder "
                "with a config.json, nor a hub id that could be read. With local_files_only=True "
                "or HF_HUB_OFFLINE=1 only files downloaded before are found; a gated model needs "
                "a login. The cause: " + str(error).strip()
            ) from error
        if not config:
            raise LoadError(f"{self.name} has no config.json; save_pretrained writes one")
        found: dict[str, Any] = config
        return found
