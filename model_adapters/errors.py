"""What can go wrong, by what the caller has to change.

All errors derive from `AdapterError`; each is also the built-in error that a caller would expect.
"""


class AdapterError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(AdapterError, ValueError):
    """A request, a batch or an option that the model cannot take, found before the forward pass."""


class SiteError(AdapterError, RuntimeError):
    """A site was read or written at a moment or in a way that cannot work."""


class LayerError(SiteError, IndexError):
    """A layer number outside the model."""


class LoadError(AdapterError, RuntimeError):
    """The model or its processor could not be loaded, or its kind is not known here."""


class SelfCheckError(AdapterError, RuntimeError):
    """The loaded model does not obey an identity that every site relies on."""
