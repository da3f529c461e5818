"""MiniCPM-o 2.6 and 4.5, whose code comes with the checkpoint."""

from model_adapters.families.family import Family
from model_adapters.families.minicpmo_calls import request
from model_adapters.families.minicpmo_media import Clips, Slices
from model_adapters.families.minicpmo_mend import importing, prepare, prepare_class

SLICES = Slices(
    kind="image",
    tower="vpm",
    features="resampler",
    token="regap_interp.placeholder",
    values="pixel_values",
    sizes="tgt_sizes",
    bounds="image_bound",
    per_row=("pixel_values", "tgt_sizes", "image_bound"),
    unread="image_sizes",
)

CLIPS = Clips(
    kind="audio",
    tower="apm",
    features="audio_avg_pooler",
    token="regap_interp.placeholder",
    values="audio_features",
    lengths="audio_feature_lens",
    bounds="audio_bounds",
    per_row=("audio_feature_lens", "audio_bounds"),
    unread="spk_bounds",
)

MINICPM_O = Family(
    name="MiniCPM-o",
    model_types=("minicpmo",),
    media=(SLICES, CLIPS),
    entry="llm",
    request=request,
    importing=importing,
    prepare_class=prepare_class,
    prepare=prepare,
    config_options={"init_tts": False},
    quirks=("code of its own", "media told by bounds", "generates from embeddings"),
)

FAMILIES: tuple[Family, ...] = (MINICPM_O,)
