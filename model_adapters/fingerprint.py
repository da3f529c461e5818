"""Which weights a model has, in one line that survives saving, loading, casting and moving."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from model_adapters.errors import LoadError
from model_adapters.weights import kept_values

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
    them as they are goes unnoticed. Weights that accelerate keeps on CPU or disk are read from
    there, one after another.

    Raises:
        LoadError: when weights are nowhere to be had.
    """
    digest = hashlib.sha256()
    model: Any = module
    config = _stable(model.config.to_dict())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    names: list[str] = []
    samples: list[Tensor] = []
    try:
        for name, values in kept_values(module):
            names.append(f"{name}{tuple(values.shape)}")
            samples.append(_sample(values))
    except ValueError as error:
        raise LoadError(f"the weights cannot be told from others: {error}") from error
    for name, raw in zip(names, _raw(samples), strict=True):
        digest.update(name.encode())
        digest.update(raw)
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _stable(v) for k, v in value.items() if k not in _VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    # A copy: a view would hold the whole of an offloaded weight in memory.
    return flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].clone()


def _raw(samples: list[Tensor]) -> list[bytes]:
    """The bytes of each as bfloat16, in one transfer for each device and type."""
    found: dict[int, bytes] = {}
    for kind in dict.fromkeys((one.device, one.dtype) for one in samples):
        of_kind = [i for i, one in enumerate(samples) if (one.device, one.dtype) == kind]
        joined = torch.cat([samples[i] for i in of_kind]).to(torch.bfloat16).cpu()
        raw, start = joined.view(torch.int16).numpy().tobytes(), 0
        for i in of_kind:
            stop = start + 2 * len(samples[i])
            found[i], start = raw[start:stop], stop
    return [found[i] for i in range(len(samples))]
