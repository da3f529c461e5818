"""Qwen-Omni thinkers for TransformerLens's own `TransformerBridge`.

A bridge rewires the model that it is given: its layers become TransformerLens's. Never give it the
module of an adapter; give it a copy (`copy.deepcopy(module)` before wrapping), or load another one.
"""

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.qwen2_5_vl import (
    Qwen2_5_VLArchitectureAdapter,
)
from transformer_lens.model_bridge.supported_architectures.qwen3_vl_moe import (
    Qwen3VLMoeArchitectureAdapter,
)


def _with_towers(mapping: dict[str, Any]) -> None:
    """Towers as one component each: their insides differ from those of the VL models."""
    mapping["vision_encoder"] = GeneralizedComponent(name="model.visual")
    mapping["audio_encoder"] = GeneralizedComponent(name="model.audio_tower")


class Qwen2_5OmniThinker(Qwen2_5_VLArchitectureAdapter):
    """`Qwen2_5OmniThinkerForConditionalGeneration`: text decoder and mRoPE of Qwen2.5-VL."""

    required_libraries: list[str] = []  # noqa: RUF012  as the base class has it
    """The VL model's torchvision serves its processor, not the forward pass."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _with_towers(self.component_mapping)


class Qwen3OmniMoeThinker(Qwen3VLMoeArchitectureAdapter):
    """`Qwen3OmniMoeThinkerForConditionalGeneration`: text decoder of Qwen3-VL-MoE, DeepStack too.

    As for that model, `blocks.{l}.hook_resid_post` lacks what DeepStack adds behind layer l.
    """

    required_libraries: list[str] = []  # noqa: RUF012  as the base class has it

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _with_towers(self.component_mapping)


_ADAPTERS: dict[str, type] = {
    "Qwen2_5OmniThinkerForConditionalGeneration": Qwen2_5OmniThinker,
    "Qwen3OmniMoeThinkerForConditionalGeneration": Qwen3OmniMoeThinker,
}


def register_bridge_adapters() -> tuple[str, ...]:
    """Teach TransformerLens the Qwen-Omni thinkers.

    Then `build_bridge_from_module(copy, architecture, hf_config=copy.config)` takes them, and
    `TransformerBridge.boot_transformers(..., hf_model=copy)`.

    Returns:
        Names of the architectures; one that TransformerLens knows already keeps its own adapter.
    """
    for name, adapter in _ADAPTERS.items():
        if name not in SUPPORTED_ARCHITECTURES:
            ArchitectureAdapterFactory.register_adapter(name, adapter)
            # `boot_transformers` asks this table, which `register_adapter` leaves as it is.
            SUPPORTED_ARCHITECTURES[name] = adapter
    return tuple(_ADAPTERS)
