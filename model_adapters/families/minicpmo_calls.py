"""MiniCPM-o's own code, mended for today's transformers and callable like every other model.

The code comes with the checkpoint. `prepare` gives the model a class of ours over the vendor's:
`forward` takes flat keyword arguments beside the vendor's one dict, `generate` works without the
vendor's tokenizer too, and the vendor's own calls keep their arguments and results.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model_adapters.errors import InputError

_asked: contextvars.ContextVar[tuple[Any, Mapping[str, Any]] | None] = contextvars.ContextVar(
    "what the running call of a model was asked", default=None
)


class FlatCalls:
    """What is put in front of the vendor's class."""

    def forward(
        self: Any,
        *vendor: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Any = None,
        tgt_sizes: Any = None,
        image_bound: Any = None,
        image_sizes: Any = None,
        audio_features: Any = None,
        audio_feature_lens: Any = None,
        audio_bounds: Any = None,
        spk_bounds: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of a prompt.

        Args:
            *vendor: the vendor's dict of inputs; nothing else but keyword arguments of the language
                model may be given beside it.
            input_ids: tokens, `[batch, position]`.
            attention_mask: 0 at padding.
            position_ids: counted from the mask if not given.
            pixel_values: for each row a list of image slices, `[3, patch, patch * patches]`.
            tgt_sizes: for each row `[slice, 2]`, rows and columns of patches.
            image_bound: for each row `[slice, 2]`, first and one-past-last position.
            image_sizes: what the processor returns beside; not read.
            audio_features: all clips of the batch, `[clip, bin, frame]`.
            audio_feature_lens: for each row the frames of its clips.
            audio_bounds: for each row `[run, 2]`, first and one-past-last position.
            spk_bounds: where a speaker's voice goes; not read without the speech head.
            past_key_values: earlier positions.
            **kwargs: of the language model.
        """
        kwargs |= {"past_key_values": past_key_values, "attention_mask": attention_mask}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if vendor or "data" in kwargs:
            with _answering(self):
                return super().forward(*vendor, **kwargs)  # type: ignore[misc]
        if input_ids is None:
            raise InputError("input_ids is missing")
        data = _data(
            input_ids,
            pixel_values=pixel_values,
            tgt_sizes=tgt_sizes,
            image_bound=image_bound,
            audio_features=audio_features,
            audio_feature_lens=audio_feature_lens,
            audio_bounds=audio_bounds,
        )
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = _positions(input_ids, attention_mask, past)
        with _answering(self):
            return super().forward({**data, "position_ids": position_ids}, **kwargs)  # type: ignore[misc]

    def generate(self: Any, *args: Any, tokenizer: Any = None, **kwargs: Any) -> Any:
        """The vendor's `generate` if there is a tokenizer; without one, prompts and answers.

        Args:
            *args: as the vendor takes them.
            tokenizer: the vendor's.
            **kwargs: flat inputs as of `forward`, and options of `generate`.

        Returns:
            What the vendor returns, a list of texts and an output with the new tokens only; without
            a tokenizer tokens `[batch, prompt and new]`.
        """
        with _answering(self):
            if args or tokenizer is not None:
                return super().generate(*args, tokenizer=tokenizer, **kwargs)  # type: ignore[misc]
            return self._tokens(**kwargs)

    @torch.no_grad()
    def _tokens(
        self: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Any = None,
        tgt_sizes: Any = None,
        image_bound: Any = None,
        image_sizes: Any = None,
        audio_features: Any = None,
        audio_feature_lens: Any = None,
        audio_bounds: Any = None,
        spk_bounds: Any = None,
        **options: Any,
    ) -> Int[Tensor, "answer position"]:
        data = _data(
            input_ids,
            pixel_values=pixel_values,
            tgt_sizes=tgt_sizes,
            image_bound=image_bound,
            audio_features=audio_features,
            audio_feature_lens=audio_feature_lens,
            audio_bounds=audio_bounds,
        )
        embeddings, _ = self.get_vllm_embedding(data)
        embeddings = self.get_omni_embedding(
            data, input_embeddings=embeddings, chunk_length=self.config.audio_chunk_length
        )
        new = self.llm.generate(inputs_embeds=embeddings, attention_mask=attention_mask, **options)
        prompts = input_ids.repeat_interleave(len(new) // len(input_ids), dim=0)
        return torch.cat([prompts.to(new), new], dim=1)

    def get_vllm_embedding(self: Any, data: Mapping[str, Any]) -> Any:
        """The vendor's token embeddings with images; notes what the call was asked."""
        if _asked.get() is not None:
            _asked.set((self, data))
        return super().get_vllm_embedding(data)  # type: ignore[misc]

    def get_audio_embedding(
        self: Any, data: Mapping[str, Any], chunk_length: float = -1, dummy: bool = True
    ) -> list[list[Tensor]]:
        """The vendor's vectors of every clip, each encoded by itself.

        Together the vendor's encoder sees the padding of shorter clips, so that a clip's vectors
        would depend on its neighbours.
        """
        features = data.get("audio_features")
        if features is None or len(features) == 0:
            return []
        # The vendor leaves the type to whoever calls.
        features = features.to(self.apm.conv1.weight.dtype)
        rows: list[list[Tensor]] = []
        clip = 0
        for lengths in data["audio_feature_lens"]:
            rows.append([])
            for length in map(int, lengths):
                one = {
                    "audio_features": features[clip : clip + 1, :, :length],
                    "audio_feature_lens": [torch.tensor([length], device=features.device)],
                }
                rows[-1] += super().get_audio_embedding(one, chunk_length)[0]  # type: ignore[misc]
                clip += 1
        return rows

    def get_omni_embedding(
        self: Any,
        data: Mapping[str, Any],
        input_embeddings: Float[Tensor, "batch position d_model"],
        chunk_length: float = -1,
        stream_input: bool = False,
    ) -> Any:
        """Embeddings with the clips of a row, one after another, in the runs bounded for them.

        The vendor's own wants one run a clip, or, set to streams, one row a batch.

        Raises:
            InputError: where the runs hold another number of positions than the clips.
        """
        if stream_input:
            return super().get_omni_embedding(data, input_embeddings, chunk_length, True)  # type: ignore[misc]
        for row, clips in enumerate(self.get_audio_embedding(data, chunk_length)):
            if not clips:
                continue
            found = torch.cat(list(clips))
            bounds = torch.as_tensor(data["audio_bounds"][row]).reshape(-1, 2).tolist()
            places = torch.cat([torch.arange(start, stop) for start, stop in bounds])
            if len(places) != len(found):
                raise InputError(
                    f"row {row}: the audio gives {len(found)} vectors, audio_bounds holds "
                    f"{len(places)} positions"
                )
            input_embeddings[row, places.to(found.device)] = found.to(input_embeddings)
        return input_embeddings


def request(module: nn.Module) -> Mapping[str, Any] | None:
    """The inputs of the call of `module` that is running in this thread; None outside of one."""
    found = _asked.get()
    return found[1] if found is not None and found[0] is module else None


@contextlib.contextmanager
def _answering(module: Any) -> Iterator[None]:
    token = _asked.set((module, {}))
    try:
        yield
    finally:
        _asked.reset(token)


def _data(input_ids: Tensor, **given: Any) -> dict[str, Any]:
    """The vendor's dict, what is missing filled in as it wants it."""
    rows = range(len(input_ids))
    none = input_ids.new_zeros(0, dtype=torch.long)
    empty: dict[str, Any] = {
        "pixel_values": [[] for _ in rows],
        "tgt_sizes": [[] for _ in rows],
        "image_bound": [none.reshape(0, 2) for _ in rows],
        "audio_features": [],
        "audio_feature_lens": [none for _ in rows],
        "audio_bounds": [none.reshape(0, 2) for _ in rows],
    }
    filled = {name: empty[name] if value is None else value for name, value in given.items()}
    return {"input_ids": input_ids, **filled}


def _positions(ids: Tensor, mask: Tensor | None, past: int) -> Int[Tensor, "batch position"]:
    if mask is None:
        return (past + torch.arange(ids.shape[1], device=ids.device)).expand(len(ids), -1)
    mask = mask.bool()
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, 1)[:, -ids.shape[1] :]


@functools.cache
def flat(vendor: type) -> Any:
    """The vendor's class with `FlatCalls` in front; it keeps its name, which checkpoints hold."""
    about = {"__module__": vendor.__module__, "__doc__": vendor.__doc__}
    return type(vendor.__name__, (FlatCalls, vendor), about)
