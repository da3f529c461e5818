"""Chats in the transformers or OpenAI content form, turned into a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from model_adapters import media
from model_adapters.errors import InputError

Message = Mapping[str, Any]
Chat = Sequence[Message]

_ROLES = ("system", "user", "assistant", "tool")

# Content parts that carry media: type -> (kind, key of the value, reader).
_MEDIA: dict[str, tuple[str, str, Callable[[Any, str], Any]]] = {
    "image": ("image", "image", media.picture),
    "audio": ("audio", "audio", media.sound),
    "video": ("video", "video", media.clip),
    "image_url": ("image", "image_url", lambda value, where: media.picture(_url(value), where)),
    "input_audio": ("audio", "input_audio", media.recording),
}


def normalise(requests: Sequence[Chat], takes: frozenset[str]) -> list[list[dict[str, Any]]]:
    """The requests with every content part in the one form that processors take.

    Args:
        requests: chats; a chat is a list of `{"role", "content"}`, content a string or a list of
            parts `{"type": "text" | "image" | "audio" | "video", ...}` or the OpenAI forms
            `image_url` and `input_audio`.
        takes: media that the model takes.

    Raises:
        InputError: for an empty list, a malformed chat, an unknown part, unusable media or a
            medium the model does not take; it names request, message and part.
    """
    if isinstance(requests, str | Mapping) or not isinstance(requests, Sequence):
        raise InputError(
            f"requests is a list of chats, a chat a list of messages; got {type(requests).__name__}"
        )
    if not requests:
        raise InputError("the list of requests is empty")
    return [_chat(chat, takes, f"request {index}") for index, chat in enumerate(requests)]


def _chat(chat: Chat, takes: frozenset[str], where: str) -> list[dict[str, Any]]:
    if isinstance(chat, Mapping):
        raise InputError(f"{where} is one message; a request is a list of messages: [[message]]")
    if isinstance(chat, str) or not isinstance(chat, Sequence) or not chat:
        raise InputError(
            f'{where} must be a list of at least one {{"role": ..., "content": ...}}, got {chat!r}'
        )
    messages = [_message(m, takes, f"{where}, message {i}") for i, m in enumerate(chat)]
    if messages[-1]["role"] == "assistant":
        raise InputError(f"{where} ends with the assistant; the last message must be the user's")
    return messages


def _message(message: Message, takes: frozenset[str], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InputError(f'{where} must be {{"role": ..., "content": ...}}, got {message!r}')
    if message["role"] not in _ROLES:
        raise InputError(f"{where}: role {message['role']!r} is none of {', '.join(_ROLES)}")
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not content:
        raise InputError(f"{where}: content is a string or a list of parts, and not empty")
    parts = [_part(part, takes, f"{where}, part {index}") for index, part in enumerate(content)]
    if all(part["type"] == "text" and not part["text"].strip() for part in parts):
        raise InputError(f"{where} is empty")
    return {"role": message["role"], "content": parts}


def _part(part: Any, takes: frozenset[str], where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if not isinstance(kind, str) or kind not in _MEDIA:
        given = sorted(part) if isinstance(part, Mapping) else type(part).__name__
        raise InputError(
            f"{where}: no content part of type {kind!r} (given: {given}); parts are "
            f'{{"type": "text", "text": ...}} and {", ".join(_MEDIA)}'
        )
    medium, key, read = _MEDIA[kind]
    if medium not in takes:
        raise InputError(
            f"{where}: this model takes no {medium}; it takes {', '.join(sorted(takes | {'text'}))}"
        )
    if part.get(key) is None:
        raise InputError(f"{where}: a part of type {kind!r} holds its value under {key!r}")
    return {"type": medium, medium: read(part[key], where)}


def _url(value: Any) -> Any:
    return value.get("url") if isinstance(value, Mapping) else value


def encode_one(processor: Any, chat: list[dict[str, Any]], known: Sequence[str]) -> dict[str, Any]:
    """The forward arguments of one request.

    Args:
        processor: a transformers processor, one with the same `apply_chat_template`, or a
            tokenizer (for text).
        chat: as `normalise` returns it.
        known: names that the model's forward reads; what else a processor returns is left out.
    """
    if not hasattr(processor, "tokenizer"):
        # Templates of text models take strings only.
        chat = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in chat]
    encoding = processor.apply_chat_template(
        [chat],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {
        name: value
        for name, value in encoding.items()
        if name in known and (not isinstance(value, Tensor) or value.numel())
    }


def typed_control(tokenizer: Any, chat: list[dict[str, Any]], ids: frozenset[int]) -> list[str]:
    """Tokens among `ids` that the tokenizer by itself would see in the texts of a chat."""
    if tokenizer is None:
        return []
    texts = [part["text"] for message in chat for part in message["content"] if "text" in part]
    found = {
        token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids
    }
    return sorted(tokenizer.convert_ids_to_tokens(token) for token in found & ids)


def with_other_text(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat with a plain word for every text."""
    return [
        {**m, "content": [{**p, "text": "a"} if "text" in p else p for p in m["content"]]}
        for m in chat
    ]
