"""The adapter: one nnsight wrapper with the same sites and inputs for every model."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from jinja2 import TemplateError
from nnsight import NNsight
from torch import Tensor, nn

from model_adapters.batch import Batch, PaddingSide
from model_adapters.call import Call, read_call
from model_adapters.call_site import calling_frame, opens_with
from model_adapters.collate import Window, collate
from model_adapters.describe import describe, padding_side
from model_adapters.encode import Chat, encode_one, normalise, typed_control, with_other_text
from model_adapters.errors import InputError, SiteError
from model_adapters.family import Family
from model_adapters.fingerprint import fingerprint
from model_adapters.generation import (
    Generation,
    end_tokens,
    generation_config,
    read_generation,
)
from model_adapters.hooks import HookFunction, HookHandle, add_hook
from model_adapters.layout import discover
from model_adapters.readout import unembed
from model_adapters.resume_probe import LayerArguments, probe_layers
from model_adapters.selfcheck import bare_logits, probe, self_check
from model_adapters.sites import (
    HeadsSite,
    InputSite,
    LayerSites,
    MidSite,
    OutputSite,
    ResultSite,
    Site,
    WindowBatcher,
    inside_block,
)
from model_adapters.tracer import (
    AdapterTracer,
    GenerationTracer,
    StepInterleaver,
    lock_of,
    translated,
)
from model_adapters.validate import check_inputs, check_names, forward_names

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
            family: its entry in `model_adapters.family`.
            processor: turns chats into inputs; `encode` needs it.
            tokenizer: decodes answers.
            model_id: a name for reports.
            missing_processor: why there is no processor.

        Raises:
            LoadError: when the model has no parts to put sites on.
            SelfCheckError: when the model does not obey the identities of its sites.
        """
        self.layout = discover(module, family)
        self.family = family
        self.processor, self.tokenizer = processor, tokenizer
        self.model_id = model_id
        self._missing_processor = missing_processor
        inputs = probe(module, family)
        with lock_of(module):
            bare = bare_logits(module, inputs)
            super().__init__(module, interleaver=StepInterleaver())
            self._build_sites()
            self.self_check = self_check(self, inputs, bare)

    # --- what the model is ---

    @property
    def module(self) -> Any:
        """The wrapped transformers model."""
        return self._module

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
        """Query heads of a layer."""
        return self.layout.n_heads

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return self.layout.d_head

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

    @functools.cached_property
    def layer_arguments(self) -> LayerArguments:
        """How calls of the decoder layers can be repeated for some rows; see `resume`."""
        return probe_layers(self)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device the model starts to compute on."""
        hook = getattr(self._module, "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return torch.device(device) if device is not None else self._module.device

    @property
    def pad_id(self) -> int:
        """Token that fills up short rows; they are masked there."""
        text, generation = self._module.config.get_text_config(), self._module.generation_config
        media = {getattr(self._module.config, medium.token) for medium in self.family.media}
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

    def _build_sites(self) -> None:
        layout, family = self.layout, self.family
        numbers = range(layout.n_layers)
        layers = [self.get(f"{layout.layers}.{number}") for number in numbers]

        def sites(name: str, make: Callable[..., Site], inner: str = "", *more: Any) -> LayerSites:
            return LayerSites(
                name,
                [
                    make(f"{name}[{i}]", layer.get(inner) if inner else layer, *more)
                    for i, layer in enumerate(layers)
                ],
            )

        self._embed = InputSite("embed", layers[0])
        self.resid_pre = sites("resid_pre", InputSite)
        self.z = sites("z", HeadsSite, family.out_proj, layout.n_heads)
        self.result = sites("result", ResultSite, family.out_proj, layout.n_heads)
        self.attn_out = sites("attn_out", OutputSite, family.attn)
        self.resid_mid = sites("resid_mid", MidSite, family.mid_norm)
        self.mlp_out = sites("mlp_out", OutputSite, family.mlp)
        self.resid_post = sites("resid_post", OutputSite)
        self._final_norm = OutputSite("final_norm", self.get(layout.norm))
        self._logits = OutputSite("logits", self.get(layout.head))
        self._result_hooks: dict[ResultSite, Any] = {}
        per_layer = (self.resid_pre, self.z, self.attn_out, self.resid_mid, self.mlp_out)
        named = [site for kind in (*per_layer, self.resid_post) for site in kind.sites]
        self._site_names = {
            (site.envoy.path, "output" if isinstance(site, OutputSite) else "input"): site.label
            for site in (*named, self._final_norm, self._logits)
        }
        # Asked for after its input, so only `result` can be late there.
        self._site_names |= {(site.envoy.path, "output"): site.label for site in self.result.sites}

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
            except (OSError, TemplateError, TypeError, ValueError) as error:
                raise InputError(f"request {index}: {error}") from error
        inputs, _ = collate(
            encodings, self.family, pad_id=self.pad_id, sides=[padding_side] * len(encodings)
        )
        return self._describe(inputs, padding_side)

    def _encode_one(self, chat: list[dict[str, Any]]) -> dict[str, Any]:
        known = forward_names(self._module)
        encoding = encode_one(self.processor, chat, known)
        check_inputs(encoding, self._module, self.family)
        control = self._control_ids()
        typed = typed_control(self.tokenizer, chat, control)
        if typed:
            # Some processors keep such text as words; then it counts no more than other text.
            harmless = encode_one(self.processor, with_other_text(chat), known)
            if _count(encoding, control) != _count(harmless, control):
                raise InputError(
                    f"the text holds {', '.join(typed)}, which the processor turns into control "
                    "tokens; take them out, or write them in another way"
                )
        return encoding

    def describe(self, **inputs: Any) -> Batch:
        """The batch of ready encodings, given as the forward's keyword arguments.

        Raises:
            InputError: for encodings the model cannot take.
        """
        check_inputs(inputs, self._module, self.family)
        return self._describe(inputs, padding_side(inputs.get("attention_mask")))

    def read_call(self, inputs: Mapping[str, Any]) -> Call:
        """What a call of the raw model holds, for hooks on a model that somebody else runs.

        Args:
            inputs: keyword arguments of the call, as `generate` or an evaluation harness gives
                them.

        Raises:
            InputError: for a call without token ids, or with a mask that is not [batch, position].
        """
        model = self._module
        return read_call(inputs, self.family, model.config, control=self._control_ids())

    def _describe(self, inputs: Mapping[str, Any], side: PaddingSide) -> Batch:
        config = self._module.config
        return describe(inputs, self.family, config, control=self._control_ids(), side=side)

    def _control_ids(self) -> frozenset[int]:
        config = self._module.config
        text = config.get_text_config()
        ids = {getattr(config, name, None) for name in self.family.control_tokens}
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
        check_inputs(inputs, self._module, self.family)
        return inputs

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
        tokens: Tensor = self._module.generate(**inputs, generation_config=config)
        return tokens

    def _batch_size(self, *args: Any, **kwargs: Any) -> int:
        ids = kwargs.get("input_ids")
        return 0 if ids is None else len(ids)

    def _collated(
        self, encodings: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], tuple[Window, ...]]:
        sides = [padding_side(encoding.get("attention_mask")) for encoding in encodings]
        return collate(encodings, self.family, pad_id=self.pad_id, sides=sides)

    def _towers(self) -> dict[str, str]:
        towers: dict[str, str] = {}
        for medium in self.family.media:
            path = f"{self.path}.{medium.tower}"
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
            with torch.set_grad_enabled(grad), translated(self._site_names, self._towers()):
                yield


def _count(encoding: Mapping[str, Any], ids: frozenset[int]) -> int:
    return sum(token in ids for token in encoding["input_ids"].flatten().tolist())
