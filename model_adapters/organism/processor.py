"""The organism's processor: chats with media in, the keys of the Qwen2.5-Omni processor out.

It is built from the real parts that need no torchvision: the PIL image processor of Qwen2-VL, the
Whisper feature extractor and a fast tokenizer. The real `Qwen2_5OmniProcessor` cannot be used here
because its video processor imports torchvision; clips are cut into patches by this class.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerFast, WhisperFeatureExtractor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model_adapters import media
from model_adapters.organism.render import SAMPLE_RATE

Message = Mapping[str, Any]
Conversation = Sequence[Message]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %} {% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)

# User text travels through the template as a mark in a private-use code point, so that a user who
# types "<|IMAGE|>" has typed words and not a placeholder.
_MARK = re.compile("\ue000(\\d+)\ue001")


class OrganismProcessor:
    """Turns chats into one batch, offering the calls that the adapter makes on real processors."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Qwen2VLImageProcessorPil,
        feature_extractor: WhisperFeatureExtractor,
        frames_per_second: float,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.feature_extractor = feature_extractor
        self.frames_per_second = frames_per_second

    @property
    def chat_template(self) -> str:
        """The Jinja chat template, as in real processors."""
        return self.tokenizer.chat_template

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "OrganismProcessor":
        """Reads `processor_config.json` and the tokenizer files of a folder."""
        config = json.loads((Path(folder) / "processor_config.json").read_text())
        return cls(
            tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True),
            image_processor=Qwen2VLImageProcessorPil(**config["image_processor"]),
            feature_extractor=WhisperFeatureExtractor(**config["feature_extractor"]),
            frames_per_second=config["frames_per_second"],
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads."""
        self.tokenizer.save_pretrained(folder)
        image, sound = self.image_processor, self.feature_extractor
        config = {
            "processor_class": type(self).__name__,
            "frames_per_second": self.frames_per_second,
            "image_processor": {
                "size": {
                    "shortest_edge": image.size["shortest_edge"],
                    "longest_edge": image.size["longest_edge"],
                },
                "patch_size": image.patch_size,
                "temporal_patch_size": image.temporal_patch_size,
                "merge_size": image.merge_size,
            },
            "feature_extractor": {
                "feature_size": sound.feature_size,
                "sampling_rate": sound.sampling_rate,
                "hop_length": sound.hop_length,
                "n_fft": sound.n_fft,
                "chunk_length": sound.chunk_length,
            },
        }
        path = Path(folder) / "processor_config.json"
        path.write_text(json.dumps(config, indent=2) + "\n")

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        return_dict: bool = True,
        return_tensors: Literal["pt"] = "pt",
        padding: bool = True,
        padding_side: Literal["left", "right"] = "left",
    ) -> BatchFeature | list[str]:
        """One batch of chats with their media packed, or the rendered prompts.

        Args:
            conversation: one chat or several; a chat is a list of `{"role", "content"}`, content a
                string or a list of parts of type text, image, audio or video.
            tokenize: `False` gives the prompt strings, one placeholder per medium.
            return_dict, return_tensors, padding: as in real processors; only the defaults are
                supported.

        Raises:
            ValueError: for an unsupported option, an unknown part, or an unusable medium.
        """
        if not (return_dict and padding and return_tensors == "pt"):
            raise ValueError(
                "OrganismProcessor returns padded torch batches only: leave return_dict, padding "
                "and return_tensors at True, True and 'pt'"
            )
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats = cast("Sequence[Conversation]", [conversation] if single else conversation)
        if tokenize:
            return self.encode(chats, add_generation_prompt, padding_side)
        return [
            self.tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=add_generation_prompt
            )
            for chat in chats
        ]

    def encode(
        self,
        chats: Sequence[Conversation],
        add_generation_prompt: bool = False,
        padding_side: Literal["left", "right"] = "left",
    ) -> BatchFeature:
        """One batch of chats with their media packed; see `apply_chat_template`."""
        given: dict[str, list[Any]] = {"image": [], "video": [], "audio": []}
        rows = [self._tokens(chat, add_generation_prompt) for chat in chats]
        for chat in chats:
            for part in _parts(chat):
                if part["type"] != "text":
                    given[part["type"]].append(part[part["type"]])
        encoding: dict[str, torch.Tensor] = {}
        counts: dict[str, Iterator[int]] = {}
        if given["image"]:
            images = [[media.picture(image, "image")] for image in given["image"]]
            encoding["pixel_values"], encoding["image_grid_thw"] = self._patches(images)
            counts["image"] = iter(self._merged(encoding["image_grid_thw"]))
        if given["video"]:
            clips = [_frames(video) for video in given["video"]]
            encoding["pixel_values_videos"], encoding["video_grid_thw"] = self._patches(clips)
            seconds = self.image_processor.temporal_patch_size / self.frames_per_second
            encoding["video_second_per_grid"] = torch.full((len(clips),), seconds)
            counts["video"] = iter(self._merged(encoding["video_grid_thw"]))
        if given["audio"]:
            sounds = [self._sound(audio) for audio in given["audio"]]
            features = self.feature_extractor(
                sounds,
                sampling_rate=SAMPLE_RATE,
                padding="max_length",
                return_attention_mask=True,
                return_tensors="pt",
            )
            encoding["input_features"] = features["input_features"]
            encoding["feature_attention_mask"] = features["attention_mask"]
            halved = (features["attention_mask"].sum(-1) - 1) // 2 + 1
            counts["audio"] = iter(((halved - 2) // 2 + 1).tolist())
        rows = [self._expand(row, counts) for row in rows]
        return BatchFeature({**self._pad(rows, padding_side), **encoding})

    def _tokens(self, chat: Conversation, add_generation_prompt: bool) -> list[int]:
        """Token ids of a chat, one placeholder per medium."""
        texts: list[str] = []

        def mark(text: str) -> str:
            texts.append(text)
            return f"\ue000{len(texts) - 1}\ue001"

        marked = []
        for message in chat:
            content = message["content"]
            if isinstance(content, str):
                marked.append({"role": message["role"], "content": mark(content)})
                continue
            parts = [
                {"type": "text", "text": mark(part["text"])} if part["type"] == "text" else part
                for part in _parts([message])
            ]
            marked.append({"role": message["role"], "content": parts})
        prompt = self.tokenizer.apply_chat_template(
            marked, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        tokens: list[int] = []
        for index, piece in enumerate(_MARK.split(prompt)):
            from_user = index % 2 == 1
            tokens += self.tokenizer.encode(
                texts[int(piece)] if from_user else piece,
                add_special_tokens=False,
                split_special_tokens=from_user,
            )
        return tokens

    def _expand(self, row: list[int], counts: Mapping[str, Iterator[int]]) -> list[int]:
        """The row with each placeholder repeated once per token that its medium becomes."""
        kinds = {
            self.tokenizer.convert_tokens_to_ids(f"<|{kind.upper()}|>"): kind
            for kind in ("image", "video", "audio")
        }
        expanded: list[int] = []
        for token in row:
            kind = kinds.get(token)
            expanded += [token] * (next(counts[kind]) if kind else 1)
        return expanded

    def _sound(self, audio: Any) -> Float[np.ndarray, "samples"]:
        samples = media.sound(audio, "audio")
        longest = self.feature_extractor.n_samples
        if len(samples) > longest:
            raise ValueError(
                f"an audio has {len(samples) / SAMPLE_RATE:.2f} s; this processor hears at most "
                f"{longest / SAMPLE_RATE:g} s and would drop the rest"
            )
        return samples

    def _merged(self, grid: torch.Tensor) -> list[int]:
        return (grid.prod(-1) // self.image_processor.merge_size**2).tolist()

    def _patches(
        self, clips: Sequence[Sequence[Image.Image]]
    ) -> tuple[Float[torch.Tensor, "patches values"], torch.Tensor]:
        """Packed patches and grids; a picture is a clip whose only frame stands still."""
        length = self.image_processor.temporal_patch_size
        frames = [frame for clip in clips for frame in clip]
        stills = self.image_processor(frames, return_tensors="pt")
        sizes = stills["image_grid_thw"].prod(-1).tolist()
        pieces = iter(torch.split(stills["pixel_values"], sizes))
        grids = iter(stills["image_grid_thw"])
        patches, grid_thw = [], []
        for clip in clips:
            still = [next(pieces) for _ in clip]
            grid = [next(grids) for _ in clip]
            still += [still[-1]] * (-len(still) % length)
            if len(clip) == 1:
                patches.append(still[0])
            else:
                # Every still holds its own frame `length` times; take one copy of each.
                stack = rearrange(
                    torch.stack(still),
                    "(t own) n (c copy v) -> t own n c copy v",
                    own=length,
                    c=3,
                    copy=length,
                )[:, :, :, :, 0]
                patches.append(rearrange(stack, "t own n c v -> (t n) (c own v)"))
            grid_thw.append(torch.tensor([len(still) // length, grid[0][1], grid[0][2]]))
        return torch.cat(patches), torch.stack(grid_thw)

    def _pad(
        self, rows: Sequence[list[int]], side: Literal["left", "right"]
    ) -> dict[str, torch.Tensor]:
        if side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {side!r}")
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
            ids[index, span] = torch.tensor(row)
            mask[index, span] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _parts(chat: Conversation) -> Iterator[Mapping[str, Any]]:
    for message in chat:
        content = message["content"]
        if isinstance(content, str):
            yield {"type": "text", "text": content}
            continue
        for part in content:
            kind = part.get("type")
            if kind not in ("text", "image", "audio", "video") or kind not in part:
                raise ValueError(
                    f"a content part must be of type text, image, audio or video and hold its "
                    f"value under that key; got type {kind!r} with keys {sorted(part)}"
                )
            yield part


def _frames(video: Any) -> list[Image.Image]:
    """The frames of a list of images, or of an array [time, height, width, 3]."""
    if isinstance(video, (str, Path)):
        raise ValueError(f"a video is given as its frames, not as a file; got {str(video)!r}")
    frames = [media.picture(frame, f"frame {index}") for index, frame in enumerate(video)]
    if len(frames) < 2:
        raise ValueError(f"a video must have at least 2 frames, got {len(frames)}")
    if len({frame.size for frame in frames}) > 1:
        raise ValueError("the frames of one video must all have the same size")
    return frames
