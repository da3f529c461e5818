"""Chats in the transformers or OpenAI content form, turned into a batch."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from torch import Tensor

from model_adapters import media
from model_adapters.errors import InputError
from model_adapters.families import Family

Message = Mapping[str, Any]
Chat = Sequence[Message]
"""Messages in order, the user's last: `{"role", "content"}`, content a string or a list of parts,
as `Adapter.encode` has them."""

_ROLES = ("system", "user", "assistant", "tool")

UNPROCESSABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TemplateError,
    TypeError,
    ValueError,
)
"""What processors raise for chats and media that they cannot take."""

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
        _check_keys(part, ("type", "text"), where)
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
    _check_keys(part, ("type", key, *(("sampling_rate",) if kind == "audio" else ())), where)
    if part.get("sampling_rate") is not None:
        media.check_rate(part["sampling_rate"], where)
    return {"type": medium, medium: read(part[key], where)}


def _check_keys(part: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Nothing reads further keys, such as a processor's options; better said than ignored."""
    more = sorted(name for name, value in part.items() if name not in known and value is not None)
    if more:
        raise InputError(
            f"{where}: nothing reads {', '.join(map(repr, more))} of a part of type "
            f"{part['type']!r}; it has {', '.join(known)}. Options of a processor are set on the "
            "processor"
        )


def _url(value: Any) -> Any:
    return value.get("url") if isinstance(value, Mapping) else value


def encode_one(
    processor: Any,
    chat: list[dict[str, Any]],
    known: Sequence[str],
    *,
    typed: Sequence[str] = (),
) -> dict[str, Any]:
    """The forward arguments of one request.

    Args:
        processor: a transformers processor, one with the same `apply_chat_template`, or a
            tokenizer (for text).
        chat: as `normalise` returns it.
        known: names that the model's forward reads; what else a processor returns is left out.
        typed: names of control tokens in the chat's texts, which are to be read as the letters they
            are. Processors that do not come from transformers decide for themselves.

    Raises:
        InputError: when such a name cannot be kept apart from the control token.
    """
    _check_rate(processor, chat)
    if not hasattr(processor, "tokenizer"):
        # Templates of text models take strings only.
        chat = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in chat]
    render = functools.partial(
        processor.apply_chat_template,
        [chat],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    encoding = _rendered(render, typed) if typed and _is_of_transformers(processor) else render()
    return {
        name: value
        for name, value in encoding.items()
        # Some processors make labels of the prompt, which only training wants.
        if name in known and name != "labels" and (not isinstance(value, Tensor) or value.numel())
    }


def _rendered(render: Callable[..., Any], typed: Sequence[str]) -> Any:
    """An encoding in which typed names are text, as far as processor and template can do that."""
    cannot = (AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
    try:
        return render(sanitize_control_tokens=True)
    except cannot:
        try:
            return render()  # What comes out is checked by its control tokens.
        except cannot as error:
            raise InputError(
                f"the text holds {', '.join(typed)}, which the processor reads as tokens of its "
                f"own; take them out, or write them in another way ({error})"
            ) from error


def _check_rate(processor: Any, chat: list[dict[str, Any]]) -> None:
    """Refuse sounds for an encoder of another sampling rate; it would hear them too slow."""
    names = ("feature_extractor", "audio_processor")
    extractor = next((getattr(processor, name) for name in names if hasattr(processor, name)), None)
    rate = getattr(extractor, "sampling_rate", media.SAMPLE_RATE)
    sounds = any(part["type"] == "audio" for message in chat for part in message["content"])
    if sounds and rate != media.SAMPLE_RATE:
        raise InputError(
            f"{type(processor).__name__} takes sounds at {rate} Hz, encode has them at "
            f"{media.SAMPLE_RATE}; call the processor yourself and trace(**encoding)"
        )


def _is_of_transformers(processor: Any) -> bool:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    return isinstance(processor, (PreTrainedTokenizerBase, ProcessorMixin))


def typed_names(tokenizer: Any, chat: list[dict[str, Any]]) -> list[str]:
    """Names of control tokens and placeholders that the tokenizer sees in the texts of a chat."""
    added = set(getattr(tokenizer, "added_tokens_decoder", ()))
    if not added:
        return []
    # The token for unknown words stands for words of the user.
    added.discard(tokenizer.unk_token_id)
    texts = [part["text"] for message in chat for part in message["content"] if "text" in part]
    found = {
        token for text in texts for token in tokenizer(text, add_special_tokens=False).input_ids
    }
    return sorted(tokenizer.convert_ids_to_tokens(token) for token in found & added)


def check_kept(
    chat: list[dict[str, Any]], encoding: Mapping[str, Any], family: Family, config: Any
) -> None:
    """Refuse an encoding that has fewer items of a medium than the chat.

    A processor that leaves out an image leaves out its placeholders too, and a text comes out.

    Args:
        chat: as `normalise` returns it.
        encoding: of that chat, checked in itself.
        family: of the model.
        config: of the model.

    Raises:
        InputError: naming the medium.
    """
    kinds = [part["type"] for message in chat for part in message["content"]]
    for medium in family.media:
        held = kinds.count(medium.kind)
        items = len(medium.items(encoding, config)) if medium.given(encoding) else 0
        if items < held:
            raise InputError(
                f"the chat holds {held} {medium.kind}(s), and the processor made {items} of them; "
                "what it leaves out the model never sees. Is one too short or too small for a "
                f"token, or does the chat template write no placeholder for {medium.kind}s?"
            )


def with_other_text(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat with a plain word for every text."""
    return [
        {**m, "content": [{**p, "text": "a"} if "text" in p else p for p in m["content"]]}
        for m in chat
    ]
