"""Refusal read from the middle of the model: tokens that open refusals, and lenses on them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from analyses.geometry.requests import Requests
from model_adapters import Adapter
from regap_interp._candidates import token_ids
from regap_interp.adaptive.outcomes import REFUSAL_PHRASES, Refused, refusal_log_odds

_AT_ONCE = 64
"""Requests whose logits over the whole vocabulary are held at once."""


@dataclass(frozen=True)
class RefusalTokens:
    """First tokens of refusals, and what they are weighed against."""

    refusing: tuple[int, ...]
    answering: tuple[int, ...] | None = None
    """First tokens of answers; then only these rows and those of `refusing` are multiplied. None
    for all other tokens, which takes the whole unembedding."""
    n_refused: int = 0
    """Answers they were found in; 0 for tokens that were given."""
    n_answered: int = 0

    def __post_init__(self) -> None:
        """Refuse sets that cannot be weighed."""
        both = set(self.refusing) & set(self.answering or ())
        if not self.refusing or self.answering == () or both:
            raise ValueError(
                f"refusing is {self.refusing}, answering {self.answering}; give at least one token "
                "on each side, none on both (answering=None for all other tokens)"
            )

    @classmethod
    def given(
        cls,
        adapter: Adapter,
        refusing: Sequence[int | str],
        answering: Sequence[int | str] | None = None,
    ) -> "RefusalTokens":
        """`refusing` tokens open refusals, `answering` ones answers (None: all others).

        Ids, or strings of one token each.

        Raises:
            ValueError: a string of several tokens, or an id the model does not have.
        """
        other = None if answering is None else token_ids(adapter, answering)
        return cls(token_ids(adapter, refusing), other)

    def check(self, adapter: Adapter) -> None:
        """Refuse tokens that a model does not have.

        Raises:
            ValueError: naming them.
        """
        wrong = [
            one
            for one in (*self.refusing, *(self.answering or ()))
            if not 0 <= one < adapter.d_vocab
        ]
        if wrong:
            raise ValueError(
                f"tokens {wrong} are none of {adapter.model_id}, which has 0 to "
                f"{adapter.d_vocab - 1}; take those of its own tokenizer"
            )

    @property
    def rows(self) -> tuple[int, ...] | None:
        """Rows of the unembedding that log-odds need; None for all."""
        return None if self.answering is None else (*self.refusing, *self.answering)

    def log_odds(self, logits: Float[Tensor, "item token"]) -> Float[Tensor, "item"]:
        """Log-odds, float64, in nats.

        Args:
            logits: Of `rows`, in their order; of the whole vocabulary where that is None.
        """
        if self.answering is None:
            return refusal_log_odds(logits, self.refusing)
        exact, count = logits.to(torch.float64), len(self.refusing)
        return exact[:, :count].logsumexp(dim=1) - exact[:, count:].logsumexp(dim=1)


def find_refusal_tokens(
    adapter: Adapter,
    requests: Requests,
    *,
    refused: Refused = REFUSAL_PHRASES,
    least: float = 0.02,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    progress: bool = False,
) -> RefusalTokens:
    """The tokens that open the model's own refusals of these requests, and its other answers.

    Args:
        adapter: A model with a tokenizer.
        requests: Some that it refuses and some that it answers; text ones will do.
        refused: Judges an answer.
        least: Share of the refusals that a token must open; likewise of the answers.
        max_new_tokens: Longest answer; long enough to be judged.
        batch_size: Requests answered at a time.
        progress: True draws a bar on standard error.

    Raises:
        ValueError: The model refuses nothing, or everything: give the tokens then.
    """
    if not 0 <= least < 1:
        raise ValueError(f"least is {least}; expected a share, such as 0.02")
    opened: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    with tqdm(total=len(requests), unit=" requests", disable=not progress) as bar:
        for batch in requests.batches(adapter, batch_size):
            found = adapter.generate(batch.to(adapter.device), max_new_tokens=max_new_tokens)
            for tokens, text in zip(found.tokens.tolist(), found.texts, strict=True):
                if text.strip():
                    opened[bool(refused(text))][tokens[0]] += 1
            bar.update(len(batch))
    totals = {kind: sum(counts.values()) for kind, counts in opened.items()}
    if not totals[True] or not totals[False]:
        raise ValueError(
            f"{totals[True]} of {len(requests)} answers are refusals and {totals[False]} are not; "
            "both are needed to tell them apart. Give requests of both kinds, another judge "
            "(refused=...), or the tokens themselves: RefusalTokens.given"
        )
    share = {
        kind: {token: count / totals[kind] for token, count in counts.items()}
        for kind, counts in opened.items()
    }
    chosen = {
        kind: tuple(
            sorted(
                token
                for token, one in share[kind].items()
                if one >= least and one > share[not kind].get(token, 0.0)
            )
        )
        for kind in (True, False)
    }
    if not chosen[True] or not chosen[False]:
        raise ValueError(
            "refusals and answers open with the same tokens, so the first one does not tell; give "
            "other tokens: RefusalTokens.given"
        )
    return RefusalTokens(chosen[True], chosen[False], totals[True], totals[False])


@runtime_checkable
class Lens(Protocol):
    """Reads logits from states after any layer."""

    @property
    def name(self) -> str:
        """For captions."""
        ...

    def logits(
        self,
        adapter: Adapter,
        states: Float[Tensor, "item d_model"],
        layer: int,
        tokens: Sequence[int] | None,
    ) -> Float[Tensor, "item token"]:
        """Logits of `tokens` (None: of all), in their order, of states after a layer."""
        ...


@dataclass(frozen=True)
class LogitLens:
    """The model's own final norm and head: exact after the last layer."""

    name: str = "logit lens"

    def logits(
        self,
        adapter: Adapter,
        states: Float[Tensor, "item d_model"],
        layer: int,
        tokens: Sequence[int] | None,
    ) -> Float[Tensor, "item token"]:
        """See `Lens`."""
        with torch.no_grad():
            return adapter.unembed(states, tokens)


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine translators in front of the logit lens: `h + h @ weight.T + bias` at each layer.

    This is the form of the tuned lens (2303.08112). Layers without a translator are read as they
    are, as the last one should be.
    """

    weight: Mapping[int, Float[Tensor, "d_model d_model"]]
    """By layer, applied to `resid_post`."""
    bias: Mapping[int, Float[Tensor, "d_model"]]
    name: str = "tuned lens"

    def __post_init__(self) -> None:
        """Refuse translators that lack a half."""
        if set(self.weight) != set(self.bias):
            raise ValueError(
                f"weight has the layers {sorted(self.weight)}, bias {sorted(self.bias)}; a "
                "translator needs both"
            )

    def check(self, adapter: Adapter) -> None:
        """Refuse a lens of another model.

        Raises:
            ValueError: translators of layers that the model does not have, of another width, or
                with numbers that are not finite.
        """
        wrong = [layer for layer in self.weight if not 0 <= layer < adapter.n_layers]
        if wrong:
            raise ValueError(
                f"the lens translates the layers {wrong}; {adapter.model_id} has 0 to "
                f"{adapter.n_layers - 1}"
            )
        width = adapter.d_model
        for layer, weight in self.weight.items():
            bias = self.bias[layer]
            if weight.shape != (width, width) or bias.shape != (width,):
                raise ValueError(
                    f"the lens has weight {tuple(weight.shape)} and bias {tuple(bias.shape)} at "
                    f"layer {layer}; {adapter.model_id} is {width} wide, so give "
                    f"{(width, width)} and {(width,)}: it was trained for another model"
                )
            if not (weight.isfinite().all() and bias.isfinite().all()):
                raise ValueError(f"the lens holds numbers that are not finite at layer {layer}")

    def logits(
        self,
        adapter: Adapter,
        states: Float[Tensor, "item d_model"],
        layer: int,
        tokens: Sequence[int] | None,
    ) -> Float[Tensor, "item token"]:
        """See `Lens`."""
        if layer in self.weight:
            weight, bias = self.weight[layer].to(states), self.bias[layer].to(states)
            states = states + states @ weight.T + bias
        return LogitLens().logits(adapter, states, layer, tokens)


def lens_log_odds(
    adapter: Adapter,
    states: Float[Tensor, "item d_model"],
    layer: int,
    tokens: RefusalTokens,
    lens: Lens | None = None,
) -> Float[Tensor, "item"]:
    """Log-odds of refusing (`tokens`), read from states after a layer, float64 on the CPU.

    Raises:
        ValueError: a tuned lens of another model.
    """
    through = lens or LogitLens()
    if isinstance(through, TunedLens):
        through.check(adapter)
    found = [
        tokens.log_odds(through.logits(adapter, part, layer, tokens.rows).detach().cpu())
        for part in states.split(_AT_ONCE)
    ]
    return torch.cat(found)
