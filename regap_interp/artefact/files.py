"""Reading and writing safetensors files without trusting them."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regap_interp.artefact.errors import ArtefactError

# A thousand directions need about one MiB.
_LONGEST_HEADER = 16 * 2**20


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new file beside `path`, then put it in place: whole, or not at all."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ArtefactError(f"there is no folder {str(target.parent)!r} to write {target.name} to")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write named tensors and one JSON object, under the metadata key `regap_interp`.

    The same contents always give the same bytes.
    """
    data = save({name: tensors[name].contiguous() for name in sorted(tensors)}, metadata_of(about))
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def metadata_of(about: Mapping[str, Any]) -> dict[str, str]:
    """The JSON object as metadata of a safetensors file."""
    # One key only: safetensors writes several in no fixed order.
    return {"regap_interp": json.dumps(about, sort_keys=True, allow_nan=False)}


def digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """sha256 in hex over tensors and JSON object, to be written into the object beside the rest."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def check_digest(path: str | Path, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Refuse a file whose contents are not what its `sha256` was made of.

    Raises:
        ArtefactError: Contents were changed, or there is no `sha256`.
    """
    if not isinstance(about, Mapping) or not isinstance(about.get("sha256"), str):
        raise ArtefactError(f"{path} has no 'sha256'; it is damaged or of another make")
    rest = {key: value for key, value in about.items() if key != "sha256"}
    try:
        found = digest(tensors, rest)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} holds what was never saved in such files: {error}") from error
    if found != about["sha256"]:
        raise ArtefactError(
            f"the contents of {path} are not those it was saved with; it was damaged or edited, "
            "so make it again"
        )


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """What `write_tensors` wrote.

    Raises:
        ArtefactError: No such file, no safetensors file, one of another make, or too long a
            header.
    """
    about = _read_about(Path(path))
    try:
        return load_file(path), about
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error


def _read_about(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise ArtefactError(
                    f"{path} is no safetensors file: its header would have {length} bytes"
                )
            header = json.loads(file.read(length), parse_constant=_no_constant)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    except ArtefactError:
        raise
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is no safetensors file: {error}") from error
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get("regap_interp") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ArtefactError(
            f"{path} holds tensors but no manifest; this library did not write it. Plain "
            "vectors can be read with safetensors, and made into directions with Direction(...)"
        )
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"what {path} says of itself is no JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds the number {name}")
