"""The configuration of the MiniCPM-o stand-in."""

from typing import Any

from transformers import Qwen3Config, SiglipVisionConfig, WhisperConfig


class MiniCPMOConfig(Qwen3Config):
    """The language model's configuration with the encoders' inside."""

    model_type = "minicpmo"

    def __init__(
        self,
        version: str = "4.5",
        query_num: int = 4,
        vision_batch_size: int = 16,
        drop_vision_last_layer: bool = False,
        audio_pool_step: int = 5,
        audio_chunk_length: float = 1.0,
        stream_input: bool = False,
        init_audio: bool = True,
        init_tts: bool = False,
        vision_config: Any = None,
        audio_config: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure a model.

        Args:
            version: "2.6" or "4.5".
            query_num: positions of an image slice.
            vision_batch_size: slices in one call of the image encoder.
            drop_vision_last_layer: leave out the image encoder's last layer.
            audio_pool_step: encoder frames of one audio position.
            audio_chunk_length: seconds of audio that see one another.
            stream_input: read audio second by second; 2.6 calls it `chunk_input`.
            init_audio: have an audio encoder.
            init_tts: would add the speech head, which this stand-in lacks.
            vision_config: of the image encoder, a config or its dict.
            audio_config: of the audio encoder, likewise.
            **kwargs: of the language model.
        """
        self.version, self.query_num, self.vision_batch_size = version, query_num, vision_batch_size
        self.drop_vision_last_layer = drop_vision_last_layer
        self.audio_pool_step, self.audio_chunk_length = audio_pool_step, audio_chunk_length
        if version == "2.6":
            self.chunk_input = kwargs.pop("chunk_input", stream_input)
        else:
            self.stream_input = stream_input
        self.init_audio, self.init_tts = init_audio, init_tts
        self.vision_config = _config(SiglipVisionConfig, vision_config)
        self.audio_config = _config(WhisperConfig, audio_config)
        super().__init__(**kwargs)


def _config(kind: Any, given: Any) -> Any:
    return kind(**(given or {})) if given is None or isinstance(given, dict) else given
