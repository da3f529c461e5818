"""Models shipped inside this package, and processor classes of ours, by name.

Classes are named by strings and imported when first needed, so that importing the package stays
cheap and no folder can name code to run.
"""

import importlib
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

EMBEDDED: dict[str, Path] = {"organism": _HERE / "organism" / "weights"}
"""Names that `load` takes for the folders they stand for."""

PROCESSORS: dict[str, str] = {
    "OrganismProcessor": "model_adapters.organism.processor:OrganismProcessor",
}
"""`processor_class` of a folder's processor_config.json to "module:class" of ours."""


def processor_class(name: str) -> Any:
    """Our class registered as `name`, or None where transformers should know it."""
    if name not in PROCESSORS:
        return None
    module, _, attribute = PROCESSORS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
