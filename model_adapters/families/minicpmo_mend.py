"""MiniCPM-o's own code, written for transformers of 2024, made to run under today's."""

import collections
import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from model_adapters.families.minicpmo_calls import FlatCalls, flat


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """While the vendor's file is imported: names that transformers has no more (for 2.6)."""
    import transformers
    from transformers.models.whisper import modeling_whisper

    kinds: Any = collections.defaultdict(lambda: modeling_whisper.WhisperAttention)
    wanted: list[tuple[Any, str, Any]] = [
        (transformers, "LogitsWarper", transformers.LogitsProcessor),
        (modeling_whisper, "WHISPER_ATTENTION_CLASSES", kinds),
    ]
    added = [one for one in wanted if not hasattr(one[0], one[1])]
    for place, name, value in added:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, name, _ in added:
            delattr(place, name)


def prepare_class(vendor: type[nn.Module]) -> None:
    """Have the class end its `__init__` with `post_init()`, without which it cannot be loaded.

    The processor that 2.6 builds there, for its `chat`, may fail to; then it is None.
    """
    made: Any = vendor.__init__

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with _processor_or_none():
            made(self, *args, **kwargs)
        if not hasattr(self, "all_tied_weights_keys"):
            self.post_init()

    vendor.__init__ = init  # type: ignore[method-assign]


@contextlib.contextmanager
def _processor_or_none() -> Iterator[None]:
    from transformers import AutoProcessor

    own, build = vars(AutoProcessor)["from_pretrained"], AutoProcessor.from_pretrained

    def tried(*args: Any, **kwargs: Any) -> Any:
        try:
            return build(*args, **kwargs)
        except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError):
            return None

    AutoProcessor.from_pretrained = staticmethod(tried)
    try:
        yield
    finally:
        AutoProcessor.from_pretrained = own


def prepare(module: nn.Module, tokenizer: Any = None) -> None:
    """Mend a model, once, and give it `FlatCalls`; note what the tokenizer alone knows."""
    if not isinstance(module, FlatCalls):
        _mend(module)
    model: Any = module
    generation = model.generation_config
    if generation.eos_token_id is None:
        generation.eos_token_id = getattr(tokenizer, "eos_token_id", None)
    token = getattr(tokenizer, "unk_token_id", None)
    if token is not None:
        ours = getattr(model.config, "regap_interp", None) or {}
        model.config.regap_interp = {**ours, "placeholder": token}


def _mend(model: Any) -> None:
    # Reads caches as they were; the one of transformers takes over.
    vars(model.llm).pop("prepare_inputs_for_generation", None)
    model.generation_config = model.llm.generation_config
    if hasattr(model, "resampler"):
        # A computed buffer, of which loading leaves uninitialised memory.
        device = model.resampler.ln_q.weight.device
        model.resampler._set_2d_pos_cache(
            model.resampler.max_size, "cpu" if device.type == "meta" else device
        )
    _mend_attention(getattr(model, "apm", None))
    vendor: type = type(model)
    model.__class__ = flat(vendor)


def _mend_attention(tower: Any) -> None:
    """Whisper's attention, called by its old names, returns three values again."""
    from transformers.models.whisper.modeling_whisper import WhisperAttention

    for layer in getattr(tower, "layers", ()):
        if type(layer.self_attn) is WhisperAttention:
            layer.self_attn.__class__ = _old_attention()


@functools.cache
def _old_attention() -> type[nn.Module]:
    from transformers.models.whisper.modeling_whisper import WhisperAttention

    class Attention(WhisperAttention):
        def forward(
            self,
            *args: Any,
            past_key_value: Any = None,
            layer_head_mask: Any = None,
            **kwargs: Any,
        ) -> tuple[Any, Any, Any]:
            found = super().forward(*args, past_key_values=past_key_value, **kwargs)
            return found[0], found[1], past_key_value

    return Attention
