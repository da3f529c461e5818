"""Whether heads are split as the attention itself splits them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from analyses.families.checks.measure import CheckError, difference
from analyses.families.checks.plain import kinds_of_layers, logits
from analyses.families.prompts import Prompts
from model_adapters import Adapter

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


def heads_are_those_of_the_attention(adapter: Adapter, prompts: Prompts) -> float:
    """Taking out one head of `z` does what taking it out inside the attention does.

    Inside, a head is an entry of the second axis of what PyTorch's attention returns, or of the
    attention pattern. Linear attention has none; its block's own count is compared.
    """
    worst, batch = 0.0, prompts.text()
    for layer in kinds_of_layers(adapter):
        n_heads, d_head = adapter.heads(layer)
        path = f"{adapter.layout.layers}.{layer}.{adapter.layout.inside[layer].attn}"
        block = adapter.module.get_submodule(path)
        watch = _Heads(None)
        with _inside(block, watch):
            bare = logits(adapter, batch)
        if not watch.counts:
            _compare_counts(block, layer, n_heads, d_head)
            continue
        if watch.counts != {n_heads}:
            raise CheckError(
                f"layer {layer}: z has {n_heads} heads, the attention {sorted(watch.counts)}"
            )
        for head in {0, n_heads - 1}:
            with _inside(block, _Heads(head)):
                expected = logits(adapter, batch)
            if not difference(bare, expected) > 1e-3:
                raise CheckError(f"layer {layer}: the logits do not depend on head {head}")
            without: list[Tensor] = []
            with adapter.trace(batch) as tracer:
                z = adapter.z[layer].clone()
                z[:, :, head] = 0
                adapter.z[layer] = z
                without.append(tracer.result.logits)
            worst = max(worst, difference(without[0], expected))
    return worst


class _Heads(TorchFunctionMode):
    """Counts the heads of every attention, and takes one out if told to."""

    def __init__(self, out: int | None) -> None:
        super().__init__()
        self.out = out
        self.counts: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        pattern = func in _SOFTMAX and result.ndim == 4
        if pattern or func is functional.scaled_dot_product_attention:
            self.counts.add(result.shape[1])
            if self.out is not None:
                result = result.clone()
                result[:, self.out] = 0
        return result


@contextlib.contextmanager
def _inside(block: nn.Module, mode: TorchFunctionMode) -> Iterator[None]:
    """`mode` is on while `block` runs, and only then."""

    def enter(module: nn.Module, args: Any) -> None:
        mode.__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.__exit__(None, None, None)

    handles = block.register_forward_pre_hook(enter), block.register_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare_counts(block: Any, layer: int, n_heads: int, d_head: int) -> None:
    if not hasattr(block, "num_v_heads") and isinstance(getattr(block, "conv", None), nn.Conv1d):
        return  # Channels of a convolution, which no one split into heads.
    own = (getattr(block, "num_v_heads", None), getattr(block, "head_v_dim", None))
    if own != (n_heads, d_head):
        raise CheckError(
            f"layer {layer}: z has {n_heads} heads of {d_head}, {type(block).__name__} says {own}"
        )
