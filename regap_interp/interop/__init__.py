"""TransformerLens on multimodal models: caches, patching with the media kept, bridges.

Needs the extra `tl`: `pip install "regap-interp[tl]"`. Nothing else of this package imports it.
"""

try:
    import transformer_lens  # noqa: F401
except ImportError as missing:
    raise ImportError(
        'regap_interp.interop needs TransformerLens: pip install "regap-interp[tl]"'
    ) from missing

from regap_interp.interop.bridge import register_bridge_adapters
from regap_interp.interop.cache import StreamCache
from regap_interp.interop.errors import InteropError
from regap_interp.interop.model import TLModel, as_tl_model, to_activation_cache

__all__ = [
    "InteropError",
    "StreamCache",
    "TLModel",
    "as_tl_model",
    "register_bridge_adapters",
    "to_activation_cache",
]
