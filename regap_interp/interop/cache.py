"""An `ActivationCache` whose parts add up to the stream of a multimodal run."""

import re
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from model_adapters.selfcheck import TOLERANCE
from regap_interp.interop.errors import InteropError

_EXTRA = ("deepstack", "per_layer")
"""Names of what a family adds to the stream beside attention and MLP."""


class StreamCache(ActivationCache):
    """TransformerLens's cache, with every component that such a model adds to its stream.

    - `hook_embed` is what enters the first layer, media merged in.
    - `("deepstack", l)` is what the model adds behind layer l (Qwen3-VL, Qwen3-Omni), and
      `("per_layer", l)` what it adds behind the MLP of layer l (Gemma 4); they are rows of
      `decompose_resid` and `get_full_resid_decomposition` under the labels "l_deepstack" and
      "l_per_layer", after TransformerLens's own rows.
    - Where a norm stands behind attention (Gemma), head results are those behind the norm, its
      scale taken as it was in the run, so that they add up to `attn_out`.
    - Where layers multiply the stream at their end (Gemma 4), rows are what is left of a component
      at the layer that is decomposed.

    Decompositions are compared with the stream they decompose, so one that misses something (the
    run was steered, the family adds in another way) raises InteropError.
    """

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Any = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """As TransformerLens's; mode "all" has the further components too.

        Raises:
            InteropError: when all components together are not the stream.
        """
        self.model.require_sum()
        last, where = self._last(layer), _slice(pos_slice)
        stack, labels = super().decompose_resid(
            last, mlp_input, mode, False, where, incl_embeds, return_labels=True
        )
        if mode == "all":
            more, names = self._extra(last, where)
            stack, labels = torch.cat([stack, *more]), [*labels, *names]
        stack = self._left(stack, labels, last)
        if mode == "all" and incl_embeds:
            self._require_whole(stack, last, mlp_input, where)
        if apply_ln:
            stack = self._normed(stack, last, mlp_input, where)
        return (stack, labels) if return_labels else stack

    def stack_head_results(
        self,
        layer: int | None = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Any:
        """As TransformerLens's.

        Raises:
            InteropError: for a model whose layers have different numbers of heads, or when the
                heads of a layer do not add up to its attention.
        """
        last, where = self._last(layer), _slice(pos_slice)
        stack, labels = self._heads(last, last, where)
        if incl_remainder:
            whole = self[f"blocks.{last - 1}.hook_resid_post" if last else "hook_embed"]
            rest = where.apply(whole, dim=-2) - stack.sum(dim=0)
            stack, labels = torch.cat([stack, rest[None]]), [*labels, "remainder"]
        if apply_ln:
            stack = self._normed(stack, last, False, where)
        return (stack, labels) if return_labels else stack

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """As TransformerLens's, down to heads but not to neurons, and with the further components.

        Raises:
            InteropError: for `expand_neurons=True`, as `stack_head_results` does, and when all
                components together are not the stream.
        """
        if expand_neurons:
            raise InteropError(
                "neurons are not recorded: expand_neurons=False gives every MLP as one component"
            )
        last, where = self._last(layer), _slice(pos_slice)
        heads, labels = self._heads(last + mlp_input, last, where)
        rows = [heads]
        if last:
            mlps, names = self.decompose_resid(
                last, mode="mlp", pos_slice=where, incl_embeds=False, return_labels=True
            )
            rows.append(mlps)
            labels += names
        embed = where.apply(self["hook_embed"], dim=-2)[None]
        bias = self.model.accumulated_bias(last, mlp_input).to(embed)
        more, names = self._extra(last, where)
        rest = torch.cat([embed, bias.expand(embed.shape), *more])
        rows.append(self._left(rest, ["embed", "bias", *names], last))
        labels += ["embed", "bias", *names]
        stack = torch.cat(rows)
        self._require_whole(stack, last, mlp_input, where)
        if apply_ln:
            stack = self._normed(stack, last, mlp_input, where)
        if project_output_onto is not None:
            stack = stack @ project_output_onto
        return (stack, labels) if return_labels else stack

    def compute_head_results(self) -> None:
        """As TransformerLens's: puts `attn.hook_result` of every layer into the cache.

        Raises:
            InteropError: as `stack_head_results`.
        """
        for number in range(self.model.cfg.n_layers):
            self._result(number)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "StreamCache":
        """As TransformerLens's."""
        cut = super().apply_slice_to_batch_dim(batch_slice)
        return StreamCache(cut.cache_dict, self.model, cut.has_batch_dim)

    def _last(self, layer: int | None) -> int:
        return self.model.cfg.n_layers if layer is None or layer == -1 else layer

    def _normed(self, stack: Tensor, last: int, mlp_input: bool, where: Slice) -> Tensor:
        normed: Tensor = self.apply_ln_to_stack(
            stack, last, mlp_input, where, has_batch_dim=self.has_batch_dim
        )
        return normed

    def _extra(self, last: int, where: Slice) -> tuple[list[Tensor], list[str]]:
        found: list[Tensor] = []
        labels: list[str] = []
        for number in range(last):
            for name in _EXTRA:
                key = f"blocks.{number}.hook_{name}"
                if key in self.cache_dict:
                    found.append(where.apply(self.cache_dict[key], dim=-2)[None])
                    labels.append(f"{number}_{name}")
        return found, labels

    def _left(self, stack: Tensor, labels: list[str], last: int) -> Tensor:
        """What is left of the components in the input of layer `last`."""
        shares = []
        for label in labels:
            number = re.match(r"\d+(?=_)", label)
            # The biases' shares are in them already.
            whole = label == "bias"
            shares.append(1.0 if whole else self.model.share(int(number[0]) if number else 0, last))
        if all(share == 1 for share in shares):
            return stack
        factors = torch.tensor(shares, device=stack.device, dtype=stack.dtype)
        return stack * factors.view(-1, *[1] * (stack.ndim - 1))

    def _require_whole(
        self, stack: Float[Tensor, "part *rows d_model"], last: int, mlp_input: bool, where: Slice
    ) -> None:
        if mlp_input:
            name = f"blocks.{last}.hook_resid_mid"
        elif last < self.model.cfg.n_layers:
            name = f"blocks.{last}.hook_resid_pre"
        else:
            name = f"blocks.{last - 1}.hook_resid_post"
        if name not in self.cache_dict:
            return
        gap = _gap(stack.sum(dim=0), where.apply(self.cache_dict[name], dim=-2))
        if gap is not None:
            raise InteropError(
                f"the components do not add up to {name}: off by {gap:.1e} of its largest value. "
                "Was this run steered, so that the stream holds what no component added?"
            )

    def _heads(self, layers: int, last: int, where: Slice) -> tuple[Tensor, list[str]]:
        """What is left in the input of layer `last` of what each head of the first layers added."""
        stacks: list[Tensor] = []
        labels: list[str] = []
        for number in range(layers):
            result = where.apply(self._result(number), dim=-3) * self.model.share(number, last)
            stacks.append(result.movedim(-2, 0))
            labels += [f"L{number}H{head}" for head in range(result.shape[-2])]
        like = where.apply(self["hook_embed"], dim=-2)
        return torch.cat(stacks) if stacks else like.new_zeros(0, *like.shape), labels

    def _result(self, number: int) -> Float[Tensor, "*rows head d_model"]:
        """Head results of one layer, checked against the attention's whole output."""
        self.model.require_sum()
        key = f"blocks.{number}.attn.hook_result"
        if key not in self.cache_dict:
            z = self.cache_dict[f"blocks.{number}.attn.hook_z"]
            n_heads = self.model.cfg.n_heads
            if z.shape[-2] != n_heads:
                raise InteropError(
                    f"layer {number} has {z.shape[-2]} heads where others have {n_heads} (linear "
                    "attention); TransformerLens stacks heads of equal layers only"
                )
            scale = self.cache_dict.get(f"blocks.{number}.ln1_post.hook_scale")
            result, whole = self.model.head_results(number, z, scale)
            gap = _gap(whole.to(z.device), self.cache_dict[f"blocks.{number}.hook_attn_out"])
            if gap is not None:
                raise InteropError(
                    f"the heads of layer {number} do not add up to what its attention adds: off by "
                    f"{gap:.1e} of the largest value. Was this run steered there?"
                )
            self.cache_dict[key] = result.to(z.device)
        return self.cache_dict[key]


def _slice(given: Any) -> Slice:
    return given if isinstance(given, Slice) else Slice(given)


def _gap(found: Tensor, expected: Tensor) -> float | None:
    """The largest difference, as part of the largest value, if it is more than rounding."""
    largest = float(expected.abs().max().clamp(min=1e-30))
    gap = float((found - expected).abs().max()) / largest
    return None if gap <= TOLERANCE.get(expected.dtype, 5e-2) else gap
