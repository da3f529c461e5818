"""Which weights a model has, in one line that survives saving, loading, casting and moving."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters.errors import LoadError

# What a config says of where it came from and how to run it, not of what the model computes.
_VOLATILE = frozenset(
    {
        "_name_or_path",
        "architectures",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "regap_interp",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
_SAMPLES = 256


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """sha256 in hex over the config and, of every parameter, name, shape and a sample.

    The sample are 256 values at even distances, rounded to bfloat16: loading the same weights as
    float32 or as bfloat16 makes no difference, nor does the device. Training that leaves all of
    them as they are goes unnoticed.

    Raises:
        LoadError: when weights are not in memory.
    """
    digest = hashlib.sha256()
    model: Any = module
    config = _stable(model.config.to_dict())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(module.named_parameters()):
        if parameter.is_meta:
            raise LoadError(f"{name} is not in memory, so the weights cannot be told from others")
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(parameter))
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sample(parameter: Tensor) -> bytes:
    flat = parameter.detach().reshape(-1)
    values = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].to(torch.bfloat16).cpu()
    return values.view(torch.int16).numpy().tobytes()
