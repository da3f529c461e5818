"""What TransformerLens has no words for."""

from model_adapters.errors import AdapterError


class InteropError(AdapterError, NotImplementedError):
    """A quantity of TransformerLens that this model, or this run of it, does not have."""
