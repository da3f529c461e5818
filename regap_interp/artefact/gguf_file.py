"""Control vectors in the GGUF form of repeng and llama.cpp.

One tensor `direction.N` for each layer, float32 `[d_model]`, added to the output of decoder layer
N. N counts from 0: repeng numbers the model's list of layers, and llama.cpp stores `direction.N`
so that its graph adds it at the end of layer N. Neither makes a vector for layer 0, and llama.cpp
refuses one. (Read in repeng's `control.py` and `extract.py`, and in llama.cpp's `common.cpp` and
`llama-adapter.cpp`.)
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from regap_interp.artefact.errors import ArtefactError
from regap_interp.artefact.files import write_atomically

ARCHITECTURE = "controlvector"
_TENSOR = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")


def write(
    path: str | Path, vectors: Mapping[int, Float[Tensor, "d_model"]], model_hint: str
) -> None:
    """Write vectors by layer, from 0, as float32.

    Raises:
        ArtefactError: There is no such folder.
        ImportError: The package gguf is not installed.
    """
    gguf = _gguf()

    def fill(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        for layer in sorted(vectors):
            writer.add_tensor(f"direction.{layer}", vectors[layer].float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, fill)


def read(path: str | Path) -> tuple[dict[int, Float[Tensor, "d_model"]], str, int | None]:
    """Vectors by layer in float64, the model hint, and the number of layers the file announces.

    Raises:
        ArtefactError: No control vector, or a damaged one.
        ImportError: The package gguf is not installed.
    """
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(path)
        architecture = _field(reader, "general.architecture")
        hint = _field(reader, f"{ARCHITECTURE}.model_hint")
        count = _field(reader, f"{ARCHITECTURE}.layer_count")
        tensors = list(reader.tensors)
    except (OSError, ValueError, LookupError, ArithmeticError, TypeError) as error:
        raise ArtefactError(
            f"{path} cannot be read as GGUF: {type(error).__name__} {error}"
        ) from error
    if architecture != ARCHITECTURE:
        raise ArtefactError(
            f"{path} is a GGUF file of architecture {architecture!r}, expected {ARCHITECTURE!r}"
        )
    if not isinstance(hint, str):
        raise ArtefactError(f"{path} does not say what kind of model it is for (model_hint)")
    vectors: dict[int, Tensor] = {}
    for tensor in tensors:
        named = _TENSOR.fullmatch(tensor.name)
        if named is None:
            raise ArtefactError(f"{path} holds a tensor {tensor.name!r}, expected direction.N")
        plain = tensor.tensor_type == gguf.GGMLQuantizationType.F32 and len(tensor.shape) == 1
        if not plain:
            raise ArtefactError(
                f"{tensor.name} of {path} is {tensor.tensor_type.name} of shape "
                f"{tensor.shape.tolist()}, expected F32 [d_model]"
            )
        layer = int(named[1])
        if layer in vectors:
            raise ArtefactError(f"{path} holds {tensor.name} twice")
        # The reader maps the file; keep a copy.
        vectors[layer] = torch.from_numpy(np.array(tensor.data, dtype=np.float64))
    return vectors, hint, count if isinstance(count, int) else None


def _field(reader: Any, name: str) -> Any:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "control vectors in GGUF need the package gguf: pip install 'regap-interp[gguf]'"
        ) from error
    return gguf
