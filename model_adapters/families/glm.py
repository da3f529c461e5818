"""GLM's vision-language models."""

from dataclasses import replace

from model_adapters.families import qwen, text
from model_adapters.families.family import Family

_IMAGE_ENDS = ("image_start_token_id", "image_end_token_id")
_VIDEO_ENDS = ("video_start_token_id", "video_end_token_id")
CONTROL = (*_IMAGE_ENDS, *_VIDEO_ENDS)

IMAGES = replace(qwen.IMAGES, opens=_IMAGE_ENDS[0], closes=_IMAGE_ENDS[1], borders=_VIDEO_ENDS)
# Videos have the placeholders of images; `video_token_id` does not come into the prompt.
VIDEOS = replace(
    qwen.VIDEOS_IN_RUNS,
    token=IMAGES.token,
    opens=_VIDEO_ENDS[0],
    closes=_VIDEO_ENDS[1],
    borders=_VIDEO_ENDS,
)

GLM4V = replace(
    text.GLM4,
    name="GLM-4.1V",
    model_types=("glm4v",),
    media=(IMAGES, VIDEOS),
    alone=("video",),
    token_types=qwen.TYPES,
    control_tokens=CONTROL,
    quirks=(*text.GLM4.quirks, "images and videos share a placeholder"),
)

GLM46V = replace(GLM4V, name="GLM-4.6V", model_types=("glm46v",))

GLM_OCR = replace(GLM4V, name="GLM-OCR", model_types=("glm_ocr",))

GLM4V_MOE = replace(
    GLM4V,
    name="GLM-4.5V",
    model_types=("glm4v_moe",),
    post_attn=(),
    post_mlp=(),
    quirks=("images and videos share a placeholder", "mixture of experts"),
)

FAMILIES: tuple[Family, ...] = (GLM4V, GLM46V, GLM4V_MOE, GLM_OCR)
