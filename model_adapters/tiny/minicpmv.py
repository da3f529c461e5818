"""Tiny MiniCPM-V models."""

from typing import Any

from model_adapters.tiny.build import IMAGE, VIDEO, Builder, Options, model, vision
from model_adapters.tiny.qwen import qwen3_5_text

MARKERS: Options = {
    "image_start_id": 102,
    "image_end_id": 103,
    "slice_start_id": 104,
    "slice_end_id": 105,
    "newline_id": 106,
}


def _model(name: str, **changes: Any) -> Builder:
    return model(
        name,
        qwen3_5_text("qwen3_5_text"),
        vision(image_size=32),
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        **changes,
    )


TINY: dict[str, Builder] = {
    "minicpmv4_6": _model("MiniCPMV4_6"),
    # The same, with positions on a canvas.
    "minicpmv4_7": _model("MiniCPMV4_7", **MARKERS),
    # The same as 4.6 with four times as many positions, and a tied head.
    "minicpm_ocr": _model("MiniCPMOcr"),
}
