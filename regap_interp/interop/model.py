"""A batch with its media as a model of TransformerLens."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from model_adapters import Adapter, Batch
from model_adapters.batch import Role
from model_adapters.errors import InputError, SiteError
from model_adapters.tracer import lock_of
from regap_interp._reading import check_no_trace
from regap_interp.graph.engine import engine_of, is_steered
from regap_interp.interop._points import Point, hook_points
from regap_interp.interop._traced import Edit, traced
from regap_interp.interop._weights import Weights
from regap_interp.interop.cache import StreamCache
from regap_interp.interop.errors import InteropError

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
TLHook = Callable[..., Tensor | None]
"""`hook(value, hook=HookPoint)`; what it returns replaces the value."""

_MEDIA = (Role.IMAGE, Role.AUDIO, Role.VIDEO)


class TLModel(Weights):
    """One batch, media included, that TransformerLens can run and patch. Made by `as_tl_model`.

    It satisfies TransformerLens's `TransformerLensModelWithWeights`. Runs take token ids of the
    batch's shape whose placeholders stand where the batch's do; None is the batch's own ids. What
    the batch holds beside ids (pixels, features, masks) goes into every run. Gradients are off.

    The final norm is folded: `ln_final` only normalises, `W_U` and `b_U` hold its gain and bias.
    """

    def __init__(self, adapter: Adapter, batch: Batch) -> None:
        """Bind `batch`; see `as_tl_model`."""
        super().__init__(adapter)
        self._batch = batch.to(adapter.device)
        self._accepted: Tensor = self._own
        self._points = hook_points(adapter)

    @property
    def _own(self) -> Int[Tensor, "batch pos"]:
        ids: Tensor = self._batch.inputs["input_ids"]
        return ids

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Names that hooks and caches of this model know, layer by layer."""
        return tuple(self._points)

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "batch pos"] | None = None,
        fwd_hooks: Iterable[tuple[str | Callable[[str], bool], TLHook]] = (),
        *,
        return_type: str | None = "logits",
    ) -> Float[Tensor, "batch pos d_vocab"] | None:
        """Logits of a run with hooks, media kept.

        Args:
            tokens: ids of the batch's shape; None for the batch's own.
            fwd_hooks: pairs of a name (or a function that chooses names) and `fn(value, hook)`.
            return_type: "logits", or None to return nothing.

        Raises:
            SiteError: for an unknown name, a value that can only be read, or a hook that the run
                never reached.
            InputError: for tokens of another shape or with other placeholders.
        """
        if return_type not in ("logits", None):
            raise InputError(f'return_type is "logits" or None, got {return_type!r}')
        logits = self._run(tokens, [(p, fn) for which, fn in fwd_hooks for p in self._find(which)])
        return logits if return_type else None

    def run_with_cache(
        self,
        tokens: Int[Tensor, "batch pos"] | None = None,
        *,
        names_filter: NamesFilter = None,
        remove_batch_dim: bool = False,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], StreamCache]:
        """Logits and a cache of a run, media kept.

        Args:
            tokens: ids of the batch's shape; None for the batch's own.
            names_filter: a name, several, or a function that chooses names; None for all but
                `unembed.hook_out` and `attn.hook_result`, which is computed from `z` when needed.
            remove_batch_dim: drop the first axis, of a batch of one row.

        Raises:
            SiteError: for an unknown name.
            InputError: for tokens of another shape or with other placeholders.
        """
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: HookPoint) -> None:
            kept[str(hook.name)] = value.detach()

        points = self._chosen(names_filter)
        everything = names_filter is None or callable(names_filter)
        logits = self._run(tokens, [(point, keep) for point in points], optional=everything)
        cache = StreamCache({p.name: kept[p.name] for p in points if p.name in kept}, self)
        if remove_batch_dim:
            cache.remove_batch_dim(batch_size=len(self._batch))
        return logits, cache

    def to_tokens(self, input: Any = None, **options: Any) -> Int[Tensor, "batch pos"]:
        """A copy of the batch's token ids, or checked ones of the caller.

        Raises:
            InputError: for text, and for ids that do not fit the batch.
        """
        if isinstance(input, Tensor):
            return self._fitting(input)
        if input is not None:
            raise InputError(
                "a text alone does not say where the media go: encode a chat with adapter.encode, "
                "and give the batch to as_tl_model"
            )
        return self._own.clone()

    def _run(
        self, tokens: Tensor | None, hooks: list[tuple[Point, TLHook]], *, optional: bool = False
    ) -> Tensor:
        """One pass; `optional` for hooks that may find nothing at their places."""
        inputs = {**self._batch.inputs, "input_ids": self._fitting(tokens)}
        reached: set[str] = set()
        adapter = self._adapter
        with lock_of(adapter.module), contextlib.ExitStack() as stack:
            check_no_trace(adapter)
            steered = is_steered(adapter)

            def attach(*_: Any) -> None:
                if steered and engine_of(adapter)._busy:
                    return  # a pass that the graph makes for itself
                for point, fn in hooks:
                    with contextlib.suppress(*[InteropError] if optional else []):
                        for handle in point.attach(_called(point, fn, reached)):
                            stack.callback(handle.remove)

            if steered:
                # A graph puts its hooks on when the pass begins; these come behind them. Asked for
                # all states, it runs no layer twice.
                inputs["output_hidden_states"] = True
                begin = adapter.entry.register_forward_pre_hook(attach)
                stack.callback(begin.remove)
            else:
                attach()
            with torch.no_grad():
                logits: Tensor = adapter.module(**inputs, use_cache=False).logits
        missed = [point.name for point, _ in hooks if point.name not in reached]
        if missed and not optional:
            raise SiteError(f"the run never came to {', '.join(missed)}")
        return logits

    def _fitting(self, tokens: Tensor | None) -> Tensor:
        """Ids that go with the batch's media.

        Raises:
            InputError: for another shape, or placeholders elsewhere.
        """
        if tokens is None:
            return self._own
        if tokens.shape != self._own.shape or tokens.is_floating_point():
            raise InputError(
                f"tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; this model is "
                f"bound to a batch of ids {tuple(self._own.shape)}. For another prompt make "
                "another one: as_tl_model(adapter, adapter.encode(requests))"
            )
        tokens = tokens.to(self._own.device)
        if torch.equal(tokens, self._accepted):
            return tokens
        roles = self._adapter.describe(**{**self._batch.inputs, "input_ids": tokens}).roles
        for role in _MEDIA:
            if not torch.equal(roles == role, self._batch.roles.to(roles.device) == role):
                raise InputError(
                    f"the {role.name.lower()} placeholders of these tokens stand elsewhere than "
                    "those of the batch; corrupt words only, or encode the other prompt with its "
                    "own media and give that batch to as_tl_model"
                )
        self._accepted = tokens.clone()
        return tokens

    def _find(self, which: str | Callable[[str], bool]) -> list[Point]:
        if callable(which):
            found = [point for name, point in self._points.items() if which(name)]
            if not found:
                raise SiteError("the function chose no name of hook_names")
            return found
        if which not in self._points:
            eager = which.endswith(("hook_pattern", "hook_attn_scores"))
            why = (
                "attention patterns can be read (not changed) of a model loaded with "
                'attn_implementation="eager"'
                if eager
                else "see hook_names"
            )
            raise SiteError(f"this model has no hook {which!r}: {why}")
        return [self._points[which]]

    def _chosen(self, names: NamesFilter) -> list[Point]:
        if names is None:
            return [point for point in self._points.values() if point.kept]
        several = names if callable(names) or isinstance(names, str) else list(names)
        if isinstance(several, list):
            wanted = {point.name for name in several for point in self._find(name)}
            return [point for point in self._points.values() if point.name in wanted]
        return self._find(several)


def _called(point: Point, fn: TLHook, reached: set[str]) -> Callable[[Tensor], Tensor | None]:
    """`fn` as a hook of ours."""
    place = HookPoint()
    place.name = point.name

    def call(value: Tensor) -> Tensor | None:
        reached.add(point.name)
        new = fn(value, hook=place)
        if new is not None and not point.writable:
            raise SiteError(f"{point.name} is computed beside the run; it can be read, not changed")
        return new

    return call


def as_tl_model(adapter: Adapter, batch: Batch) -> TLModel:
    """A batch as a model of TransformerLens, for its patching and analysis functions.

        model = as_tl_model(adapter, batch)
        logits, clean = model.run_with_cache()
        patching.get_act_patch_resid_pre(model, corrupted_ids, clean, metric)

    Plain hooks on the adapter's own module do the work; it is neither copied nor changed. Graphs
    installed on the model edit these runs too, before the hooks.

    Args:
        adapter: the model.
        batch: requests with their media.
    """
    return TLModel(adapter, batch)


def to_activation_cache(
    adapter: Adapter,
    batch: Batch,
    *,
    edit: Edit | None = None,
    names_filter: NamesFilter = None,
) -> StreamCache:
    """One run of a batch as TransformerLens's `ActivationCache`.

        cache = to_activation_cache(adapter, batch)
        cache.logit_lens(top_k=5)

    Args:
        adapter: the model; graphs installed on it edit the run.
        batch: requests with their media.
        edit: run the batch in a trace instead, and call `edit(adapter)` in it: sites are live there
            as in the block of a trace. The cache then holds sites after these edits, not
            q, k, v and patterns.
        names_filter: as for `TLModel.run_with_cache`; not together with `edit`.

    Raises:
        SiteError: for an unknown name.
        InteropError: for `edit` where a graph is installed.
    """
    model = as_tl_model(adapter, batch)
    if edit is None:
        return model.run_with_cache(names_filter=names_filter)[1]
    if names_filter is not None:
        raise InputError("a traced run keeps all its sites; give edit or names_filter, not both")
    return StreamCache(traced(adapter, batch, edit), model)
