"""What TransformerLens asks of a model's weights."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.config import TransformerLensConfig

from model_adapters import Adapter
from model_adapters.errors import InputError
from model_adapters.heads import head_results, mix
from model_adapters.stand_down import standing_down
from model_adapters.weights import device_of, value_of
from regap_interp.interop._norms import Norm, measure
from regap_interp.interop._points import key_value_heads
from regap_interp.interop._readout import FoldedNorm, Readout
from regap_interp.interop.errors import InteropError


@dataclass(frozen=True)
class Attention:
    """The attention of one layer."""

    out_proj: Any
    n_heads: int

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """The output map, head by head."""
        return value_of(self.out_proj).detach().T.unflatten(0, (self.n_heads, -1))


@dataclass(frozen=True)
class Block:
    """One layer."""

    attn: Attention


class Weights:
    """Sizes and maps of an adapter's model, the final norm folded into the output head."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.tokenizer = adapter.tokenizer
        self.original_model = adapter.module
        """Under this name TransformerLens checks that the model is in evaluation mode."""

    @functools.cached_property
    def cfg(self) -> TransformerLensConfig:
        """Sizes, under TransformerLens's names."""
        adapter = self._adapter
        text = adapter.module.config.get_text_config()
        norm = measure(adapter, adapter.layout.norm)
        width = getattr(text, "intermediate_size", None)
        return TransformerLensConfig(
            d_model=adapter.d_model,
            d_head=adapter.d_head,
            n_layers=adapter.n_layers,
            n_ctx=getattr(text, "max_position_embeddings", None) or 0,
            n_heads=adapter.n_heads,
            d_mlp=width if isinstance(width, int) else None,
            d_vocab=adapter.d_vocab,
            device=str(adapter.device),
            default_prepend_bos=False,
            positional_embedding_type="rotary",
            n_key_value_heads=key_value_heads(adapter),
            uses_rms_norm=not norm.centred,
            eps=norm.eps,
            normalization_type="LNPre" if norm.centred else "RMSPre",
            final_rms=not norm.centred,
            dtype=adapter.module.dtype,
        )

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token.

        Raises:
            InputError: for a text of several tokens, or a model without a tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(f"{string!r}: there is no tokenizer; give the token's id")
        ids = self.tokenizer(string, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise InputError(f"{string!r} is {len(ids)} tokens ({ids}); give one token")
        return int(ids[0])

    @functools.cached_property
    def adapter(self) -> Readout:
        """Norm and head; under this name TransformerLens looks for the soft cap.

        Raises:
            InteropError: for a model whose logits are no function of the last state.
        """
        return Readout(self._adapter)

    @functools.cached_property
    def ln_final(self) -> FoldedNorm:
        """The final norm without its weights."""
        return FoldedNorm(self.adapter.norm)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Output head with the final norm's gain folded in, float32 at least."""
        return self.adapter.w_u

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"]:
        """Output bias with the final norm's bias folded in."""
        return self.adapter.b_u

    @property
    def unembed(self) -> Any:
        """The model's own output head, nothing folded in."""
        return self.original_model.get_submodule(self._adapter.layout.head)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """For every layer its attention's output map: `blocks[l].attn.W_O`."""
        inside = enumerate(self._adapter.layout.inside)
        return tuple(Block(Attention(self._out_proj(n), layer.n_heads)) for n, layer in inside)

    def head_results(
        self,
        layer: int,
        z: Float[Tensor, "*rows head d_head"],
        scale: Float[Tensor, "*rows 1"] | None,
    ) -> tuple[Float[Tensor, "*rows head d_model"], Float[Tensor, "*rows d_model"]]:
        """What each head adds to the stream, and what they add together, a bias included.

        Args:
            layer: counted from 0.
            z: heads' outputs of a run.
            scale: of the norm behind attention in that run, for models that have one.

        Raises:
            InteropError: without that scale, or where a bias stands before or in that norm.
        """
        adapter, out = self._adapter, self._out_proj(layer)
        rows = z.reshape(1, -1, *z.shape[-2:]).to(device_of(out))
        with standing_down(adapter), torch.no_grad():
            each = head_results(rows.flatten(-2), out, z.shape[-2])
            whole = mix(each, out)
        each, whole = each.reshape(*z.shape[:-1], -1), whole.reshape(*z.shape[:-2], -1)
        inside = adapter.layout.inside[layer]
        if inside.attn_out == inside.attn:
            return each * self._factor, whole * self._factor
        norm = self._norm_behind(layer)
        if scale is None:
            raise InteropError("keep blocks.{l}.ln1_post.hook_scale too: a norm scales the heads")
        if out.bias is not None or bool(norm.bias.any()):
            raise InteropError(f"layer {layer} has a bias before or in the norm behind attention")
        gain = norm.gain.to(each.device) * self._factor
        return (
            norm.centre(each) * gain / scale[..., None].to(each.device),
            norm.centre(whole) * gain / scale.to(each.device),
        )

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = False
    ) -> Float[Tensor, "d_model"]:
        """Output biases of attention, in all layers before `layer`, as they are in its input.

        Args:
            layer: the first layer not counted.
            mlp_input: count its attention too.
            include_mlp_biases: must be False; a cache's MLP components hold their biases.

        Raises:
            InteropError: for MLP biases.
        """
        if include_mlp_biases:
            raise InteropError("MLP biases are part of mlp_out here; neurons are not recorded")
        found = torch.zeros(self._adapter.d_model, device=self._adapter.device)
        for number in range(layer + mlp_input):
            out, dtype = self._out_proj(number), self._adapter.module.dtype
            nothing = torch.zeros(1, 1, 1, len(found), device=device_of(out), dtype=dtype)
            with standing_down(self._adapter), torch.no_grad():
                bias = mix(nothing, out)[0, 0].to(found.device)
            found = found + bias * self._factor * self.share(number, layer)
        return found

    def share(self, layer: int, last: int) -> float:
        """How much of what layer `layer` adds is left in the input of layer `last`.

        Models that multiply the stream at the end of their layers (Gemma 4) leave less than all.
        """
        kept, name = 1.0, self._adapter.family.layer_scalar
        for number in range(layer, last) if name is not None else ():
            path = f"{self._adapter.layout.layers}.{number}"
            kept *= float(getattr(self.original_model.get_submodule(path), str(name), 1.0))
        return kept

    def require_sum(self) -> None:
        """Refuse models whose stream is no sum of what their layers add.

        Raises:
            InteropError: for a model that mixes several streams.
        """
        if self._adapter.family.altup:
            raise InteropError(
                f"{self._adapter.family.name} passes on several streams and mixes them (AltUp), so "
                "its stream is no sum of what attention and MLPs add"
            )

    @property
    def _factor(self) -> float:
        """What blocks return is multiplied by before it is added."""
        text = self._adapter.module.config.get_text_config()
        return float(getattr(text, self._adapter.family.residual_multiplier or "", 1.0))

    def _out_proj(self, layer: int) -> Any:
        path = f"{self._adapter.layout.layers}.{layer}"
        return self.original_model.get_submodule(
            f"{path}.{self._adapter.layout.inside[layer].out_proj}"
        )

    def _norm_behind(self, layer: int) -> Norm:
        inside = self._adapter.layout.inside[layer]
        return measure(self._adapter, f"{self._adapter.layout.layers}.{layer}.{inside.attn_out}")

    def tokens_to_residual_directions(
        self, tokens: str | int | Int[Tensor, "*ids"]
    ) -> Float[Tensor, "*ids d_model"]:
        """Directions of the (normalised) stream whose coordinates are the tokens' logits."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens)
        if ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= self._adapter.d_vocab:
            raise InputError(f"tokens must be ids from 0 to {self._adapter.d_vocab - 1}")
        return self.adapter.directions(ids.reshape(()) if ids.numel() == 1 else ids)
