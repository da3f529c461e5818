"""ReGap installed on a model, and the answers it gives."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from model_adapters import Adapter, Batch, Generation
from model_adapters.encode import Chat
from regap_interp.adaptive.regap import Decision, ReGap
from regap_interp.graph.graph import Steered


@dataclass(frozen=True, eq=False)
class Answers(Generation):
    """Answers with the decision that each was generated under."""

    decisions: tuple[Decision, ...]


class Safe:
    """ReGap on a model, from `ReGap.on`."""

    def __init__(self, regap: ReGap, adapter: Adapter) -> None:
        self.regap, self.adapter = regap, adapter
        self._steered: Steered = regap.graph.on(adapter)
        self._guard: Any = None
        self._names = list(inspect.signature(adapter.entry.forward).parameters)

    def __enter__(self) -> "Safe":
        """Install."""
        self._steered.__enter__()
        if self.regap.missing == "refuse":
            # After the graph's own hook, which undoes itself when this one raises.
            self._guard = self.adapter.entry.register_forward_pre_hook(
                self._refuse, with_kwargs=True
            )
        return self

    def __exit__(self, *error: Any) -> None:
        """Take every hook off again, whatever happened."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
        self._steered.__exit__(*error)

    def _refuse(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep loops that know nothing of ReGap from answering rows without a bundle."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = inputs.get("input_ids")
        if ids is None or ids.shape[1] > 1:  # one token is a step of decoding
            self.regap.check_rows(self.adapter.read_call(inputs).modalities)

    def generate(
        self, requests: Batch | Sequence[Chat], *, max_new_tokens: int, **options: Any
    ) -> Answers:
        """Answers under ReGap, and what it decided for each row.

        A chat may have earlier turns, media among them; the row's modality is that of the whole
        prompt, and the decision is made anew for every call.

        Args:
            requests: Chats, or one left-padded batch.
            max_new_tokens: Longest answer.
            **options: As `Adapter.generate` takes them.

        Raises:
            MissingBundleError: A row's modality has no bundle; nothing has run then.
            InputError: Something the model cannot take.
        """
        batch = requests if isinstance(requests, Batch) else self.adapter.encode(requests)
        self.regap.check_rows(batch.modalities)
        generation = self._steered.generate(batch, max_new_tokens=max_new_tokens, **options)
        return Answers(**vars(generation), decisions=self.decisions)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Of the latest prefill, also one of the raw model's own generate.

        Raises:
            GraphError: before any.
        """
        last = self._steered.last
        return self.regap.decisions(last, last.modalities)
