"""How many patched runs fit into memory together."""

from dataclasses import dataclass

from analyses.patching.recorded import Reader
from model_adapters import Adapter


@dataclass(frozen=True)
class Budget:
    """Bytes that a sweep may use beside the model."""

    total: int
    """What the caller allows."""
    kept: int
    """What stays for all of the sweep: states, keys and values of the recorded runs."""
    adapter: Adapter
    reader: Reader

    def rows(self, width: int, full: int) -> int:
        """Rows of `width` positions of a prompt of `full` that fit at once.

        Raises:
            ValueError: when not even one does.
        """
        one = self._row(width, full)
        room = (self.total - self.kept) // one
        if room < 1:
            raise ValueError(
                f"memory is {_mb(self.total)} MB; the recorded runs keep {_mb(self.kept)} MB and "
                f"one patched run needs about {_mb(one)} MB beside them. Allow more, or sweep "
                "over fewer layers or items at a time"
            )
        return room

    def _row(self, width: int, full: int) -> int:
        """Bytes of one row within a decoder layer, a little too many."""
        adapter = self.adapter
        text = adapter.module.config.get_text_config()
        wide = getattr(text, "intermediate_size", None)
        inner = max(wide) if isinstance(wide, list | tuple) else wide or 4 * adapter.d_model
        mixed = adapter.n_heads * adapter.d_head
        numbers = width * (8 * adapter.d_model + 3 * inner + 4 * mixed) + 4 * full * mixed
        if getattr(text, "_attn_implementation", "") == "eager":
            numbers += 3 * adapter.n_heads * width * full
        if self.reader.metric.tokens is None and self.reader.metric.place is None:
            numbers += 4 * adapter.d_vocab
        if self.reader.place[0] == "logits":
            numbers += width * adapter.d_vocab
        size: int = adapter.module.dtype.itemsize
        return numbers * size


def _mb(size: int) -> int:
    return -(-size // 2**20)
