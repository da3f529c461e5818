"""Pictures, sounds and clips as users have them, brought to the one form processors take."""

import base64
import binascii
import io
import warnings
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from model_adapters.errors import InputError

SAMPLE_RATE = 16_000
"""Hertz; what the audio encoders of all families hear."""

MOST_PIXELS = 50_000_000
"""Of one picture: what the largest cameras take. Processors need some thirty bytes for each."""

_LOUDEST = 10.0
"""Resampling overshoots [-1, 1] a little; floats beyond this are on another scale."""

_UNREADABLE = (OSError, SyntaxError, ValueError)
"""What PIL raises for broken pictures."""


def picture(value: Any, where: str) -> Image.Image:
    """An RGB picture from a PIL image, an array, or the path or data URL of a file.

    Arrays are `[rows, columns]` or `[rows, columns, 3 or 4]`, uint8 or floats in [0, 1]. A photo
    whose EXIF data say that it was taken sideways is turned upright. Transparency is dropped, as
    the models' own processors do it.

    Raises:
        InputError: for anything else, an empty or unreadable picture, more than `MOST_PIXELS`
            pixels (files of that size are not decoded), non-finite values.
    """
    if isinstance(value, str | Path):
        value = _open_picture(_file(value, where), where)
    elif isinstance(value, np.ndarray):
        value = _picture_of_array(value, where)
    if not isinstance(value, Image.Image):
        raise InputError(
            f"{where}: an image is a PIL image, a numpy array or a path, not {type(value).__name__}"
        )
    _check_size(value.width, value.height, where)
    if value.mode.startswith(("I", "F")):
        raise InputError(
            f"{where}: a picture of mode {value.mode!r} (more than 8 bits) has no agreed white "
            "point; scale it to 8 bits first"
        )
    try:
        return ImageOps.exif_transpose(value).convert("RGB")
    except _UNREADABLE as error:
        raise InputError(f"{where}: not a readable picture ({error})") from error


def _check_size(width: int, height: int, where: str) -> None:
    if not width * height:
        raise InputError(f"{where}: the image is empty, {width} by {height} pixels")
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{where}: the image has {width} by {height} pixels, more than {MOST_PIXELS:,}; no "
            "model sees that many. Make it smaller first: image.thumbnail((2048, 2048))"
        )


def sound(value: Any, where: str) -> Float[np.ndarray, "samples"]:
    """A 16 kHz mono waveform as float32, from an array or the path or data URL of a WAV file.

    Integer arrays are scaled by their type's range to [-1, 1].

    Args:
        value: or `{"array": ..., "sampling_rate": ...}`, as data sets have it.
        where: for errors.

    Raises:
        InputError: for anything else, an empty sound, several channels, another rate, NaN, floats
            on another scale.
    """
    if isinstance(value, Mapping) and {"array", "sampling_rate"} <= value.keys():
        check_rate(value["sampling_rate"], where)
        value = value["array"]
    if isinstance(value, str | Path):
        value = _open_sound(_file(value, where), where)
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{where}: an audio is a numpy array or a path, not {type(value).__name__}"
        )
    if value.ndim == 2 and value.size:
        channels = min(range(2), key=lambda axis: value.shape[axis])
        raise InputError(
            f"{where}: an audio has shape [samples] (mono), not {value.shape}; the channels say "
            f"different things, so mix them yourself: audio.mean(axis={channels})"
        )
    if value.ndim != 1 or value.size == 0:
        raise InputError(
            f"{where}: an audio has shape [samples] with at least one (mono), not {value.shape}"
        )
    if np.issubdtype(value.dtype, np.signedinteger):
        value = value / -float(np.iinfo(value.dtype).min)
    elif not np.issubdtype(value.dtype, np.floating):
        raise InputError(f"{where}: audio of type {value.dtype}; give floats in [-1, 1]")
    if not np.isfinite(value).all():
        raise InputError(f"{where}: the audio holds NaN or infinite samples")
    if abs(value).max() > _LOUDEST:
        raise InputError(
            f"{where}: audio floats go from -1 to 1, these to {abs(value).max():.3g}; scale them, "
            "or give integers"
        )
    return value.astype(np.float32)


def check_rate(rate: Any, where: str) -> None:
    """Refuse a sound of another sampling rate than `SAMPLE_RATE`.

    Raises:
        InputError: with the line that resamples.
    """
    if rate != SAMPLE_RATE:
        raise InputError(
            f"{where}: a sound of {rate} Hz; models hear {SAMPLE_RATE}. Resample it first: "
            f"scipy.signal.resample_poly(audio, {SAMPLE_RATE}, {rate})"
        )


def clip(value: Any, where: str) -> Any:
    """A video as a list of RGB pictures; a path is checked and left to the processor to decode.

    Raises:
        InputError: for anything but a list of pictures, an array `[time, rows, columns, 3]` or a
            path; for an empty video.
    """
    if isinstance(value, str | Path):
        file = _file(value, where)
        if isinstance(file, bytes):
            raise InputError(f"{where}: give a video as frames or as a path, not as a data URL")
        return str(file)
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(
            f"{where}: a video is a list of pictures, a numpy array or a path, not "
            f"{type(value).__name__}"
        )
    if isinstance(value, np.ndarray) and value.ndim != 4:
        raise InputError(
            f"{where}: a video array has shape [time, rows, columns, 3], not {value.shape}"
        )
    frames = [picture(frame, f"{where}, frame {index}") for index, frame in enumerate(value)]
    if not frames:
        raise InputError(f"{where}: the video has no frames")
    return frames


def recording(data: Any, where: str) -> Float[np.ndarray, "samples"]:
    """The waveform of an `input_audio` part: `{"data": base64, "format": "wav"}`.

    Raises:
        InputError: for another format or broken data.
    """
    if not isinstance(data, Mapping) or data.get("format") != "wav" or "data" not in data:
        raise InputError(f'{where}: input_audio is {{"data": base64, "format": "wav"}}')
    return sound(_open_sound(_decode(data["data"], where), where), where)


def _file(value: str | Path, where: str) -> Path | bytes:
    """The file behind a path or URL, or the bytes in a data URL."""
    text = str(value)
    if text.startswith("data:"):
        return _decode(text.partition(",")[2], where)
    if text.startswith(("http://", "https://")):
        raise InputError(f"{where}: {text} is on the network; download it and give its path")
    try:
        path = Path(unquote(urlparse(text).path)) if text.startswith("file://") else Path(value)
        found = path.is_file()
    except (OSError, ValueError) as error:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise InputError(f"{where}: {shown!r} is no path ({error.args[-1]})") from error
    if not found:
        raise InputError(f"{where}: there is no file {str(path)!r}")
    return path


def _decode(data: Any, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{where}: the base64 data is broken ({error})") from error


def _open_picture(file: Path | bytes, where: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit is lower, and looked at before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        with opened:
            _check_size(opened.width, opened.height, where)
            opened.load()
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{where}: the image is too large ({error}); make it smaller first"
        ) from error
    except _UNREADABLE as error:
        raise InputError(f"{where}: not a readable picture ({error})") from error
    return opened


def _picture_of_array(array: np.ndarray, where: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(
            f"{where}: an image array has shape [rows, columns] or [rows, columns, 3 or 4], not "
            f"{array.shape}"
        )
    if array.size == 0:
        raise InputError(f"{where}: the image is empty, shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise InputError(f"{where}: the image holds NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            raise InputError(f"{where}: float images go from 0 to 1; scale it, or give uint8")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"{where}: an image array is uint8 or floats in [0, 1], not {array.dtype}")
    return Image.fromarray(array)


def _open_sound(file: Path | bytes, where: str) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as opened:
            rate, channels, width = (
                opened.getframerate(),
                opened.getnchannels(),
                opened.getsampwidth(),
            )
            data = opened.readframes(opened.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise InputError(
            f"{where}: not a readable WAV file ({error}); decode other formats to a 16 kHz mono "
            "numpy array"
        ) from error
    if (rate, channels) != (SAMPLE_RATE, 1) or width not in (2, 4):
        raise InputError(
            f"{where}: {rate} Hz, {channels} channel(s), {8 * width} bits; resample to "
            f"{SAMPLE_RATE} Hz mono, 16 or 32 bits: read it as floats, audio.mean(axis=1), "
            f"scipy.signal.resample_poly(audio, {SAMPLE_RATE}, {rate})"
        )
    if len(data) % width:
        raise InputError(f"{where}: the WAV file ends within a sample; it was cut off")
    return np.frombuffer(data, dtype=f"<i{width}")
