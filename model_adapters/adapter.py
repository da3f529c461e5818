"""The adapter: one nnsight wrapper with the same sites and inputs for every model."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from nnsight import NNsight
from torch import Tensor, nn

from model_adapters.bare_pass import bare_pass
from model_adapters.batch import Batch, PaddingSide
from model_adapters.call import Call, read_call
from model_adapters.call_site import calling_frame, opens_with
from model_adapters.collate import Window, collate
from model_adapters.describe import describe, padding_side
from model_adapters.encode import (
    UNPROCESSABLE,
    Chat,
    check_kept,
    encode_one,
    normalise,
    typed_names,
    with_other_text,
)
from model_adapters.errors import InputError, SiteError
from model_adapters.families import Family
from model_adapters.families.medium import attribute
from model_adapters.fingerprint import fingerprint
from model_adapters.generation import (
    Generation,
    end_tokens,
    generation_config,
    read_generation,
)
from model_adapters.hooks import HookFunction, HookHandle, add_hook
from model_adapters.layout import discover
from model_adapters.precision import in_tower_precision
from model_adapters.probe import probe
from model_adapters.readout import unembed
from model_adapters.receipt import Receipt, receipt
from model_adapters.resume_probe import LayerArguments, probe_layers
from model_adapters.selfcheck import self_check
from model_adapters.sites import OutputSite, ResultSite, WindowBatcher, inside_block
from model_adapters.tracer import (
    AdapterTracer,
    GenerationTracer,
    StepInterleaver,
    lock_of,
    translated,
)
from model_adapters.validate import check_inputs, check_names, forward_names
from model_adapters.vocabulary import Vocabulary, vocabulary
from model_adapters.weights import device_of

Stream = Float[Tensor, "batch position d_model"]


class Adapter(NNsight):
    """A multimodal language model with one vocabulary of sites. Made by `load`.

    Sites, readable and writable inside `with adapter.trace(batch):`, all `[batch, position, ...]`:

    - `embed`: what enters the first layer, media merged in.
    - `resid_pre[l]`, `resid_mid[l]`, `resid_post[l]`: the residual stream before layer l, between
      its attention and MLP, and after it. `d_model` values.
    - `attn_out[l]`, `mlp_out[l]`: what the two blocks of layer l add to it.
    - `z[l]`: the heads' outputs before mixing, `[batch, position, head, d_head]`.
    - `result[l]`: what each head adds, `[batch, position, head, d_model]`.
    - `final_norm`, `logits`: after the last norm, and `[batch, position, d_vocab]`.

    Everything of nnsight's `NNsight` works beside them: envoys of all modules, `edit`, `session`,
    `tracer.invoke`, `tracer.cache`, `tracer.stop`. Saved values are the model's own tensors: change
    them by assignment, or clone before changing them in place.

    One trace runs at a time per model, others wait. Gradients are off unless `trace(grad=True)`.
    """

    _batcher_class = WindowBatcher

    def __init__(
        self,
        module: nn.Module,
        family: Family,
        *,
        processor: Any = None,
        tokenizer: Any = None,
        model_id: str,
        missing_processor: str = "the model was given without one: load(model, processor=...)",
    ) -> None:
        """Wrap `module` and check it; see `load` for the usual way.

        Args:
            module: a transformers model in evaluation mode.
            family: its entry in `model_adapters.families`, or one of the caller's.
            processor: turns chats into inputs; `encode` needs it.
            tokenizer: decodes answers.
            model_id: a name for reports.
            missing_processor: why there is no processor.

        Raises:
            LoadError: when the model has no parts to put sites on.
            SelfCheckError: when the model does not obey the identities of its sites.
        """
        if family.prepare is not None:
            family.prepare(module, tokenizer)
        self.layout = discover(module, family)
        self.family = family
        self.processor, self.tokenizer = processor, tokenizer
        self.model_id = model_id
        self._missing_processor = missing_processor
        inputs = probe(module, family)
        with lock_of(module):
            bare = bare_pass(module, family, self.layout, inputs)
            with warnings.catch_warnings():
                # BERT calls a part of its layers `output`; nnsight says how to reach it.
                warnings.filterwarnings("ignore", "Module '.*' has a submodule named", UserWarning)
                super().__init__(module, interleaver=StepInterleaver())
            text = self._module.config.get_text_config()
            self._place_sites(vocabulary(self.get, self.layout, family, text, bare.head))
            self.self_check = self_check(self, inputs, bare)

    # --- what the model is ---

    @property
    def module(self) -> Any:
        """The wrapped transformers model."""
        return self._module

    @property
    def entry(self) -> Any:
        """The module whose forward runs once in every pass; for most models the model itself."""
        return self._module.get_submodule(self.family.entry)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.layout.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.layout.d_model

    @property
    def n_heads(self) -> int:
        """Query heads of a layer; see `heads` for models whose layers differ."""
        return self.layout.n_heads

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return self.layout.d_head

    def heads(self, layer: int) -> tuple[int, int]:
        """How many heads `z[layer]` has, and how wide they are.

        Layers of linear attention differ from the others; for them `n_heads` and `d_head` do not
        hold.

        Raises:
            LayerError: for a layer that the model does not have.
        """
        inside = self.layout.inside[self.z.number(layer)]
        return inside.n_heads, inside.d_head

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return self.layout.d_vocab

    @property
    def media(self) -> frozenset[str]:
        """What the model takes beside text: some of "image", "audio", "video"."""
        return frozenset(medium.kind for medium in self.family.media)

    @property
    def discontinuities(self) -> tuple[int, ...]:
        """Layers l after which the model adds to the stream, so `resid_post[l]` is not the next
        layer's `resid_pre`. Empty for most models."""
        return self.self_check.discontinuities

    @property
    def fingerprint(self) -> str:
        """Which weights these are, as sha256 in hex: the same in float32 and bfloat16.

        Over the config and a sample of every parameter, as they are now; see `fingerprint.py`.
        """
        return fingerprint(self._module)

    def receipt(self) -> Receipt:
        """What was checked when the model was loaded, on which versions, with figures.

        A result object: print it, save it as JSON, or take it apart.
        """
        return receipt(self)

    @functools.cached_property
    def layer_arguments(self) -> LayerArguments:
        """How calls of the decoder layers can be repeated for some rows; see `resume`."""
        return probe_layers(self)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device the model starts to compute on."""
        return device_of(self._module)

    @property
    def pad_id(self) -> int:
        """Token that fills up short rows; they are masked there."""
        text, generation = self._module.config.get_text_config(), self._module.generation_config
        media = {medium.placeholder(self._module.config) for medium in self.family.media}
        candidates = [
            getattr(self.tokenizer, "pad_token_id", None),
            generation.pad_token_id,
            getattr(text, "pad_token_id", None),
            *sorted(end_tokens(generation)),
            *range(len(media) + 1),
        ]
        return next(int(c) for c in candidates if c is not None and c >= 0 and c not in media)

    # --- sites of the whole model; those of layers are attributes ---

    @property
    def embed(self) -> Stream:
        """What enters the first layer, media merged in."""
        return self._embed.read()

    @embed.setter
    def embed(self, value: object) -> None:
        self._embed.write(value)

    @property
    def final_norm(self) -> Stream:
        """The stream after the last norm."""
        return self._final_norm.read()

    @final_norm.setter
    def final_norm(self, value: object) -> None:
        self._final_norm.write(value)

    @property
    def logits(self) -> Float[Tensor, "batch position d_vocab"]:
        """Next-token logits."""
        return self._logits.read()

    @logits.setter
    def logits(self, value: object) -> None:
        self._logits.write(value)

    def _place_sites(self, sites: Vocabulary) -> None:
        self._embed, self._final_norm, self._logits = sites.embed, sites.final_norm, sites.logits
        self.resid_pre, self.resid_mid = sites.resid_pre, sites.resid_mid
        self.resid_post = sites.resid_post
        self.z, self.result = sites.z, sites.result
        self.attn_out, self.mlp_out = sites.attn_out, sites.mlp_out
        self._site_names = sites.labels()
        self._result_hooks: dict[ResultSite, Any] = {}

    def hook(self, site: str, layer: int | None, fn: HookFunction) -> HookHandle:
        """Call `fn(value)` at a site in every pass, traced or not, until `remove()` of the handle.

        This is a plain PyTorch hook on the raw model, for loops that know nothing of nnsight.

        Args:
            site: its name: "embed", "resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out",
                "resid_post", "final_norm" or "logits".
            layer: of the sites that layers have, negative from the last; None for the others.
            fn: gets the value, `[batch, position, ...]` as in a trace, decode steps with one
                position. What it returns replaces the value, cast to its type; None leaves it.
                Changes in place arrive too. Several at one site run in the order of registration.

        Raises:
            SiteError: for an unknown site; during a pass, for a replacement of another shape.
            LayerError: for a layer that the model does not have.
        """
        return add_hook(self, site, layer, fn)

    def unembed(
        self,
        states: Float[Tensor, "*rows d_model"],
        tokens: Sequence[int] | Int[Tensor, "token"] | None = None,
    ) -> Float[Tensor, "*rows token"]:
        """Final norm and output head on any state of the stream: the logit lens.

        Works inside traces and hooks and outside; neither traces nor hooks notice. Of the last
        `resid_post` it gives the model's logits.

        Args:
            states: of the stream; cast to the model's type.
            tokens: ids whose logits are wanted; only their part of the head is computed. None for
                the whole vocabulary.

        Raises:
            SiteError: for states of another width, or a head whose logits cannot be had alone.
            InputError: for ids that the model does not have.
        """
        return unembed(self, states, tokens)

    # --- inputs ---

    def encode(self, requests: Sequence[Chat], *, padding_side: PaddingSide = "left") -> Batch:
        """One batch of requests, media packed, with the role of every position.

        Args:
            requests: chats; a chat is a list of `{"role", "content"}`, content a string or a list
                of parts: `{"type": "text", "text": str}`, `{"type": "image", "image": PIL image |
                array | path}`, `{"type": "audio", "audio": 16 kHz mono array | path}`,
                `{"type": "video", "video": frames | array | path}`, or OpenAI's `image_url` and
                `input_audio`. The last message is the user's; the answer's opening is appended.
            padding_side: where shorter rows are filled up. `generate` needs "left".

        Raises:
            InputError: for anything the model cannot take, before any forward pass.
        """
        chats = normalise(requests, self.media)
        if self.processor is None:
            raise InputError(
                f"encode needs a processor, and there is none: {self._missing_processor}. Ready "
                "encodings can be traced as keyword arguments: adapter.trace(**encoding)."
            )
        if padding_side not in ("left", "right"):
            raise InputError(f'padding_side is "left" or "right", got {padding_side!r}')
        encodings = []
        for index, chat in enumerate(chats):
            try:
                encodings.append(self._encode_one(chat))
            except InputError as error:
                raise InputError(f"request {index}: {error}") from error
            except UNPROCESSABLE as error:
                why = f"{type(error).__name__}: {error}"
                raise InputError(f"request {index}: the processor failed, {why}") from error
        inputs, _ = collate(
            encodings, self.family, pad_id=self.pad_id, sides=[padding_side] * len(encodings)
        )
        return self._describe(inputs, padding_side)

    def _encode_one(self, chat: list[dict[str, Any]]) -> dict[str, Any]:
        known, config = forward_names(self._module), self._module.config
        typed = typed_names(self.tokenizer, chat)
        encoding = encode_one(self.processor, chat, known, typed=typed)
        check_inputs(encoding, self._module, self.family)
        check_kept(chat, encoding, self.family, config)
        if typed:
            # What stayed text counts no more than other text.
            control = self._control_ids()
            harmless = encode_one(self.processor, with_other_text(chat), known)
            if _count(encoding, control) != _count(harmless, control):
                raise InputError(
                    f"the text holds {', '.join(typed)}, which the processor turns into control "
                    "tokens; take them out, or write them in another way"
                )
        return in_tower_precision(encoding, self._module, self.family)

    def describe(self, **inputs: Any) -> Batch:
        """The batch of ready encodings, given as the forward's keyword arguments.

        Raises:
            InputError: for encodings the model cannot take.
        """
        return self._describe(self._checked(inputs), padding_side(inputs.get("attention_mask")))

    def join(
        self, encodings: Sequence[Mapping[str, Any]], *, padding_side: PaddingSide = "left"
    ) -> Batch:
        """One batch of several ready encodings, each of one or more requests.

        Args:
            encodings: forward arguments, as a processor returns them.
            padding_side: where shorter rows are filled up. `generate` needs "left".

        Raises:
            InputError: for encodings that the model cannot take, or not together.
        """
        if not encodings:
            raise InputError("the list of encodings is empty")
        checked = [self._checked(encoding) for encoding in encodings]
        sides = [padding_side] * len(checked)
        inputs, _ = collate(checked, self.family, pad_id=self.pad_id, sides=sides)
        check_inputs(inputs, self._module, self.family)
        return self._describe(inputs, padding_side)

    def read_call(self, inputs: Mapping[str, Any]) -> Call:
        """What a call of the raw model holds, for hooks on a model that somebody else runs.

        Args:
            inputs: keyword arguments of the call, as `generate` or an evaluation harness gives
                them.

        Raises:
            InputError: for a call without token ids, or with a mask that is not [batch, position].
        """
        model = self._module
        noted = None if self.family.request is None else self.family.request(model)
        control = self._control_ids()
        return read_call(inputs, self.family, model.config, control=control, request=noted)

    def _describe(self, inputs: Mapping[str, Any], side: PaddingSide) -> Batch:
        config = self._module.config
        return describe(inputs, self.family, config, control=self._control_ids(), side=side)

    def _control_ids(self) -> frozenset[int]:
        config = self._module.config
        text = config.get_text_config()
        ids = {attribute(config, name) for name in self.family.control_tokens}
        ids |= {getattr(text, f"{name}_token_id", None) for name in ("bos", "pad")}
        ids |= end_tokens(self._module.generation_config)
        if self.tokenizer is not None:
            ids |= self._special_ids
            # Stands for words of the user that the tokenizer does not know.
            ids -= {self.tokenizer.unk_token_id}
        return frozenset(i for i in ids if isinstance(i, int) and i >= 0)

    @functools.cached_property
    def _special_ids(self) -> frozenset[int]:
        added = self.tokenizer.added_tokens_decoder
        marked = {number for number, token in added.items() if token.special}
        return frozenset(self.tokenizer.all_special_ids) | marked

    # --- running ---

    def trace(self, *args: Any, grad: bool = False, **kwargs: Any) -> AdapterTracer:
        """Open a trace: `with adapter.trace(batch):`.

        Args:
            *args: one `Batch`, or nothing.
            grad: keep the autograd graph; otherwise gradients are off.
            **kwargs: ready encodings and further arguments of the forward, such as
                `use_cache=False`. Without any input, add requests with `tracer.invoke(batch)`.

        Raises:
            InputError: for inputs that the model cannot take, before the forward pass.
        """
        if args or "input_ids" in kwargs:
            inputs = self._inputs_of(args, kwargs)
        else:
            check_names(kwargs, forward_names(self._module), type(self._module).__name__)
            inputs = kwargs
        return AdapterTracer(self, "__call__", grad=grad, **inputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a `Batch` or on encodings, edits included; returns what it returns.

        Raises:
            InputError: for inputs that the model cannot take.
        """
        if inside_block():
            return super().__call__(*args, **kwargs)
        inputs = self._inputs_of(args, kwargs)
        with self._running(grad=False):
            return self.interleave("__call__", **inputs)

    def generate(
        self,
        *args: Any,
        max_new_tokens: int,
        prefill: Callable[["Adapter"], Any] | None = None,
        decode: Callable[["Adapter", int], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer a batch, greedily unless told otherwise.

        Called, it returns a `Generation`. Opened by `with`, it is a trace of the generation, whose
        `steps()` name each pass and whose `generation` holds the answers afterwards:

            with adapter.generate(batch, max_new_tokens=8) as run:
                for step in run.steps():
                    if step.phase == "prefill":
                        adapter.resid_post[5] = adapter.resid_post[5] - v
            run.generation.texts

        Args:
            *args: one left-padded `Batch`, or nothing.
            max_new_tokens: longest answer.
            prefill: called as `prefill(adapter)` in the pass over the prompt, sites live.
            decode: called as `decode(adapter, step)` in each later pass, step counted from 1; sites
                have one position there.
            **kwargs: ready encodings, and options of the generation config (`do_sample=True`).
                Penalties, lengths and beams that the checkpoint's own config asks for are left
                out; its token ids stay, and with `do_sample=True` its way of sampling.

        Raises:
            InputError: for inputs or options that cannot work, before the forward pass.
            SiteError: when a function asks for a site that the pass does not reach.
        """
        opened = opens_with(calling_frame(__file__), "generate")
        config, inputs = self._generation_inputs(args, {"max_new_tokens": max_new_tokens, **kwargs})
        finish = functools.partial(
            read_generation,
            pad_id=config.pad_token_id,
            ends=end_tokens(config),
            tokenizer=self.tokenizer,
        )
        if opened:
            if prefill or decode:
                raise InputError("give prefill and decode as functions, or open a `with`; not both")
            return GenerationTracer(self, config, finish, **inputs)
        if not inputs:
            raise InputError("generate needs a Batch, or ready encodings as keyword arguments")
        if prefill or decode:
            tracer = GenerationTracer(self, config, finish, **inputs)
            return self._stepwise(tracer, prefill, decode)
        with self._running(grad=False):
            tokens = self.interleave(functools.partial(self._generate, config), **inputs)
        return finish(tokens, inputs["input_ids"].shape[1])

    def _stepwise(
        self,
        tracer: GenerationTracer,
        prefill: Callable[["Adapter"], Any] | None,
        decode: Callable[["Adapter", int], Any] | None,
    ) -> Generation:
        if prefill and not decode:
            # Without a loop nothing of ours runs in decoding.
            with tracer:
                prefill(self)
        else:
            with tracer:
                for step in tracer.steps():
                    if step.phase == "prefill" and prefill:
                        prefill(self)
                    if step.phase == "decode" and decode:
                        decode(self, step.number)
        answers: Generation = tracer.generation
        return answers

    # --- what tracers call back for ---

    def _inputs_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Checked forward arguments of a batch or of encodings."""
        if len(args) > 1 or (args and not isinstance(args[0], Batch)):
            raise InputError(
                "give one Batch, made by adapter.encode(requests), or ready encodings as keyword "
                f"arguments; got {', '.join(type(arg).__name__ for arg in args)}"
            )
        inputs = {**args[0].inputs, **kwargs} if args else dict(kwargs)
        return self._checked(inputs)

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Encodings that the model can take, media in the precision of their encoders."""
        check_inputs(inputs, self._module, self.family)
        return in_tower_precision(inputs, self._module, self.family)

    def _generation_inputs(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        settings = self._module.generation_config.to_dict()
        options = {name: kwargs.pop(name) for name in list(kwargs) if name in settings}
        config = generation_config(self._module, self.pad_id, options)
        check_names(kwargs, (*forward_names(self._module), *settings), "generate")
        if not args and "input_ids" not in kwargs:
            return config, kwargs
        return config, self._inputs_of(args, kwargs)

    def _generate(self, config: Any, **inputs: Any) -> Tensor:
        if padding_side(inputs.get("attention_mask")) == "right":
            raise InputError(
                "generate continues rows at their right end, so they must be padded on the left: "
                'encode(requests, padding_side="left")'
            )
        if self.family.short_prefill:
            # transformers asks for the last position's logits only.
            inputs.setdefault("logits_to_keep", 0)
        tokens: Tensor = self._module.generate(**inputs, generation_config=config)
        return tokens

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        ids = kwargs.get("input_ids")
        return 0 if ids is None else len(ids)

    def _collated(
        self, encodings: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], tuple[Window, ...]]:
        if self.family.altup or self.family.flat_mlp:
            raise InputError(
                f"modules of this model ({self.family.name}) return values that do not begin with "
                "the batch, which a trace cannot share out among several `invoke`s; encode the "
                "requests as one batch"
            )
        sides = [padding_side(encoding.get("attention_mask")) for encoding in encodings]
        return collate(encodings, self.family, pad_id=self.pad_id, sides=sides)

    def _towers(self) -> dict[str, str]:
        towers: dict[str, str] = {}
        for medium in self.family.media:
            for part in dict.fromkeys((medium.tower, medium.features)):
                path = f"{self.path}.{part}"
                towers[path] = f"{towers[path]} or {medium.kind}" if path in towers else medium.kind
        return towers

    @contextlib.contextmanager
    def _running(self, *, grad: bool) -> Iterator[None]:
        with lock_of(self._module):
            if self.interleaver.interleaving:
                raise SiteError(
                    "a trace of this model is already running; a block cannot open another one on "
                    "it. Add `tracer.invoke(batch)` to the outer trace, or run them one after "
                    "the other"
                )
            names = translated(self._site_names, self._towers())
            with torch.set_grad_enabled(grad), names, self._heard_calls():
                yield

    @contextlib.contextmanager
    def _heard_calls(self) -> Iterator[None]:
        """Parts that depend on what their module was called with hear it, and only inside."""
        with contextlib.ExitStack() as stack:
            for site in self.mlp_out.sites if self.family.flat_mlp else ():
                if isinstance(site, OutputSite):
                    module, hear = site.envoy._module, site.part.called
                    stack.callback(module.register_forward_pre_hook(hear, with_kwargs=True).remove)
            yield


def _count(encoding: Mapping[str, Any], ids: frozenset[int]) -> int:
    return sum(token in ids for token in encoding["input_ids"].flatten().tolist())
