"""Plain PyTorch hooks at the sites of a model, for passes that no trace watches.

A hook sees what a trace would see at its site, in the same shape, in every pass in which the
module runs: prefill, decode steps, and passes of any loop that holds the raw model. Where a trace
is open too, a hook on an input runs before the trace's blocks and a hook on an output after them.
"""

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from model_adapters.errors import LayerError, SiteError
from model_adapters.heads import head_results, mix
from model_adapters.parts import Part
from model_adapters.sites import (
    HeadsSite,
    InputSite,
    LayerSites,
    MidSite,
    OutputSite,
    ResultSite,
    Site,
    checked,
)
from model_adapters.stand_down import standing_down

if TYPE_CHECKING:
    from model_adapters.adapter import Adapter

HookFunction = Callable[[Float[Tensor, "batch position *site"]], Tensor | None]
"""Takes the value of a site; returns its replacement, or None to leave it."""

_LAYER_SITES = ("resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")
_MODEL_SITES = ("embed", "final_norm", "logits")


class HookHandle:
    """A registered hook."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove: Callable[[], None] | None = remove

    def remove(self) -> None:
        """Take the hook off the model; a second call does nothing."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove()


def find_site(adapter: "Adapter", site: str, layer: int | None) -> Site:
    """The site of that name.

    Raises:
        SiteError: for an unknown name, or a layer given where there is none.
        LayerError: for a layer that the model does not have, or a missing one.
    """
    if site in _LAYER_SITES:
        if layer is None:
            raise LayerError(
                f"{site} needs a layer, 0 to {adapter.n_layers - 1} (or negative, from the last)"
            )
        sites: LayerSites = getattr(adapter, site)
        return sites.site(layer)
    if site not in _MODEL_SITES:
        known = (*_LAYER_SITES, *_MODEL_SITES)
        near = difflib.get_close_matches(str(site), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the sites are {', '.join(known)}"
        raise SiteError(f"no site {site!r}; {hint}")
    if layer is not None:
        raise SiteError(f"{site} belongs to the whole model; give layer=None, not {layer!r}")
    found: Site = getattr(adapter, f"_{site}")
    return found


def add_hook(adapter: "Adapter", site: str, layer: int | None, fn: HookFunction) -> HookHandle:
    """Call `fn` at a site; see `Adapter.hook`."""
    found = find_site(adapter, site, layer)
    module = found.envoy._module
    match found:
        case ResultSite():
            return _add_result_hook(adapter, found, fn)
        case OutputSite():
            output = _OutputHook(found.label, fn, found.part)
            return HookHandle(module.register_forward_hook(output, with_kwargs=True).remove)
        case MidSite():
            hook: Any = _MidHook(found.label, fn)
        case HeadsSite():
            hook = _HeadsHook(found, fn)
        case InputSite():
            hook = _InputHook(found.label, fn, found.part)
        case _:
            raise SiteError(found.obstacle or f"{found.label} takes no hooks")
    return HookHandle(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a module's call, positional or not."""
    value: Tensor = args[0] if args else next(iter(kwargs.values()))
    return value


def with_first_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with the first one replaced."""
    if args:
        return (new, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): new}


def _replacement(label: str, fn: HookFunction, value: Tensor) -> Tensor | None:
    new = fn(value)
    return None if new is None or new is value else checked(label, value, new)


class _Untouched:
    """Whether a tensor handed out was changed in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        # Tensors of inference mode count no versions.
        self.before = value.clone() if value.is_inference() else value._version

    def __bool__(self) -> bool:
        if isinstance(self.before, Tensor):
            return torch.equal(self.before, self.value)
        return self.before == self.value._version


class _OutputHook:
    def __init__(self, label: str, fn: HookFunction, part: Part) -> None:
        self.label, self.fn, self.part = label, fn, part

    def __call__(self, module: Any, args: Any, kwargs: Any, raw: Any) -> Any:
        self.part.called(module, args, kwargs)
        value = self.part.get(raw)
        untouched = self.part.live or _Untouched(value)
        new = _replacement(self.label, self.fn, value)
        if new is None and not untouched:
            new = value
        return None if new is None else self.part.put(raw, new)


class _InputHook:
    def __init__(self, label: str, fn: HookFunction, part: Part) -> None:
        self.label, self.fn, self.part = label, fn, part

    def __call__(self, module: Any, args: Any, kwargs: Any) -> Any:
        raw = first_argument(args, kwargs)
        new = _replacement(self.label, self.fn, self.part.get(raw))
        return None if new is None else with_first_argument(args, kwargs, self.part.put(raw, new))


class _HeadsHook:
    def __init__(self, site: HeadsSite, fn: HookFunction) -> None:
        self.site, self.fn = site, fn

    def __call__(self, module: Any, args: Any, kwargs: Any) -> Any:
        heads = self.site.split(first_argument(args, kwargs))
        new = _replacement(self.site.label, self.fn, heads)
        return None if new is None else with_first_argument(args, kwargs, new.flatten(-2))


class _MidHook:
    """Rewrites the tensor itself, as `MidSite` does; what functions keep stays as they saw it."""

    def __init__(self, label: str, fn: HookFunction) -> None:
        self.label, self.fn = label, fn

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        live = first_argument(args, kwargs)
        copy = live.clone()
        untouched = _Untouched(copy)
        new = _replacement(self.label, self.fn, copy)
        if new is not None:
            live.copy_(new)
        elif not untouched:
            live.copy_(copy)


class _ResultHook:
    """All functions at one `result`: each sees what the ones before it left."""

    def __init__(self, adapter: "Adapter", site: ResultSite) -> None:
        self.adapter, self.site = adapter, site
        self.functions: dict[object, HookFunction] = {}
        module = site.envoy._module
        self.handle = module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        heads = first_argument(args, kwargs)
        with standing_down(self.adapter):
            value = head_results(heads, module, self.site.n_heads)
        untouched, changed = _Untouched(value), False
        for fn in list(self.functions.values()):
            new = _replacement(self.site.label, fn, value)
            if not untouched:
                changed = True
            if new is not None:
                value, changed = new, True
                untouched = _Untouched(value)
        if not changed:
            # A mere read leaves the model's own sum, to the last bit.
            return None
        self._require_own(module, heads, output)
        with standing_down(self.adapter):
            return mix(value, module)

    def _require_own(self, module: Any, heads: Tensor, output: Tensor) -> None:
        """What a trace changes inside the module cannot be seen here, and would be lost."""
        if not self.adapter.interleaver.interleaving:
            return
        with standing_down(self.adapter):
            own = module.forward(heads)
        if not torch.equal(own, output):
            raise SiteError(
                f"{self.site.label}: a trace changed z or result of this layer, and a hook changes "
                "result too; do both in the trace, or both by hooks"
            )


def _add_result_hook(adapter: "Adapter", site: ResultSite, fn: HookFunction) -> HookHandle:
    hooks: dict[ResultSite, _ResultHook] = adapter._result_hooks
    if site not in hooks:
        hooks[site] = _ResultHook(adapter, site)
    hook, key = hooks[site], object()
    hook.functions[key] = fn

    def remove() -> None:
        del hook.functions[key]
        if not hook.functions:
            hook.handle.remove()
            del hooks[site]

    return HookHandle(remove)
