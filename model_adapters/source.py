"""A folder or hub repository with a model in it, and how its weights are read."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from model_adapters.errors import LoadError
from model_adapters.families import FAMILIES, TEXT_ONLY, Family, Part, part_of
from model_adapters.registry import EMBEDDED


@dataclass(frozen=True)
class Placement:
    """Where weights go and in what form, as `load` takes it."""

    device_map: Any = None
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: str | Path | None = None
    quantization_config: Any = None

    def options(self) -> dict[str, Any]:
        """Those that were given, as keyword arguments of `from_pretrained`."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Source:
    """Where a model is read from; every file comes from the same revision.

    Raises:
        LoadError: when there is no such model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None,
        local_files_only: bool,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers.utils.hub import resolve_revision

        self.name = str(EMBEDDED.get(str(model), model))
        self.trust_remote_code = trust_remote_code
        if str(model) in EMBEDDED and not Path(self.name).is_dir():
            raise LoadError(f"the weights of {model!r} are not in this installation ({self.name})")
        if isinstance(model, Path) and not model.is_dir():
            raise LoadError(f"there is no folder {str(model)!r}")
        # A branch may move between two files; a commit does not.
        commit = resolve_revision(self.name, revision or "main", local_files_only=local_files_only)
        self.where = {"revision": commit, "local_files_only": local_files_only}
        self.config = self._read_config()

    def model(
        self, dtype: str | torch.dtype | None, placement: Placement, family: Family | None
    ) -> Any:
        """The model, or the language part of a larger checkpoint, all weights found.

        Raises:
            LoadError: saying what is missing.
        """
        options: dict[str, Any] = {**self.where, "dtype": self._dtype(dtype), **placement.options()}
        kind = self.config.get("model_type", "")
        entry = family or next((f for f in FAMILIES if kind in f.model_types), TEXT_ONLY)
        part = part_of(kind)
        foreign = False
        if part is not None:
            options["config"] = self._part_config(part)
            model_class = _transformers_class(part.model)
        else:
            name = next(iter(self.config.get("architectures") or ()), None)
            model_class = self._own_class(name)
            if model_class is None:
                foreign = True
                model_class, more = self._foreign_class(str(name), entry)
                options |= more
        try:
            # Other formats are pickles, which run code as they load.
            with entry.building():
                module, report = model_class.from_pretrained(
                    self.name,
                    output_loading_info=True,
                    trust_remote_code=self.trust_remote_code and foreign,
                    use_safetensors=True,
                    **options,
                )
        except (OSError, SafetensorError) as error:
            raise LoadError(
                f"the weights of {self.name} could not be read; they must be there, whole, as "
                f"safetensors, which save_pretrained writes. The cause: {error}"
            ) from error
        except (ImportError, ValueError) as error:
            raise LoadError(f"{self.name} could not be loaded: {str(error).strip()}") from error
        except (AttributeError, TypeError) as error:
            if not foreign:
                raise
            raise self._misfit(error) from error
        absent = sorted({*report["missing_keys"], *report["mismatched_keys"]}, key=str)
        if absent:
            raise LoadError(
                f"{len(absent)} weights of {model_class.__name__} are not in {self.name}, or have "
                f"another shape, such as {absent[0]}; they would be random"
            )
        return module.eval()

    def file(self, name: str) -> str | None:
        """The path of a file of the repository, downloaded if need be; None if it has none."""
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

    def _part_config(self, part: Part) -> Any:
        import transformers

        whole = transformers.AutoConfig.from_pretrained(self.name, **self.where)
        config = getattr(whole, part.config)
        quantised = getattr(whole, "quantization_config", None)
        if quantised is not None and getattr(config, "quantization_config", None) is None:
            config.quantization_config = _without_prefix(quantised, f"{part.attribute}.")
        return config

    def _own_class(self, name: object) -> Any:
        """The class of transformers that the config names; None if the code is the checkpoint's."""
        import transformers

        if not isinstance(name, str):
            raise LoadError(
                f"the config.json of {self.name} does not name the class of its model; it needs "
                'a line such as "architectures": ["Qwen2ForCausalLM"]'
            )
        found = _transformers_class(name)
        if found is not None:
            return found
        if "auto_map" not in self.config:
            raise LoadError(
                f"the config of {self.name} names the class {name!r}, which is no model that this "
                f"version of transformers ({transformers.__version__}) has"
            )
        return None

    def _foreign_class(self, name: str, family: Family) -> tuple[Any, dict[str, Any]]:
        """The class that the checkpoint's own code defines, and config entries it needs."""
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        references = self.config["auto_map"]
        named = references.values() if isinstance(references, Mapping) else ()
        where = next((r for r in named if isinstance(r, str) and r.endswith(f".{name}")), None)
        if where is None:
            raise LoadError(
                f"the auto_map of {self.name} names no file with the class {name!r}: {references}"
            )
        if not self.trust_remote_code:
            place = self.name if Path(self.name).is_dir() else f"its repository {self.name}"
            raise LoadError(
                f"{self.name} brings its own code: the class {name} is not in transformers but in "
                f"a file of the checkpoint ({where}). Loading it would run that code with your "
                f"rights: it can read and send your files. Read the Python files of {place}, and "
                "if you trust them, load(model, trust_remote_code=True, revision=<the commit you "
                "read>), so that no later code is run"
            )
        try:
            with family.importing():
                model_class = get_class_from_dynamic_module(where, self.name, **self.where)
        except (AttributeError, ImportError, OSError, SyntaxError, TypeError) as error:
            raise self._misfit(error) from error
        if family.prepare_class is not None:
            family.prepare_class(model_class)
        return model_class, dict(family.config_options)

    def _misfit(self, error: Exception) -> LoadError:
        import transformers

        return LoadError(
            f"the code that comes with {self.name} does not run with transformers "
            f"{transformers.__version__}: {type(error).__name__} {error}"
        )

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


def _transformers_class(name: str) -> Any:
    """The model class of that name in transformers, or None."""
    import transformers

    found = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else None


def _without_prefix(quantised: Any, prefix: str) -> Any:
    """A quantisation config whose lists of modules are those of a part of the model."""
    settings = copy.deepcopy(quantised if isinstance(quantised, dict) else quantised.to_dict())
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = [
                item.removeprefix(prefix) if isinstance(item, str) else item for item in value
            ]
    return settings
