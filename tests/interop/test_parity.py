"""The same values from nnsight's traces, from plain hooks and from TransformerLens's bridges."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module

from regap_interp.interop import as_tl_model, register_bridge_adapters, to_activation_cache
from tests.interop.conftest import Made, build

Tiny = Callable[[str], Made]

THINKERS = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
BRIDGED = (*THINKERS, "qwen3_vl", "llava", "gemma3", "qwen2_audio", "qwen2", "granite")


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridges of Qwen's VL models ask for it, though nothing in their passes needs it."""
    factory: Any = ArchitectureAdapterFactory
    for name in ("Qwen3VLForConditionalGeneration",):
        lighter = type(name, (factory._adapters[name],), {"required_libraries": []})
        monkeypatch.setitem(factory._adapters, name, lighter)


class Bound:
    """A bridge with the media of a batch in every run."""

    def __init__(self, bridge: Any, inputs: dict[str, Any]) -> None:
        self.bridge, self.cfg = bridge, bridge.cfg
        self.rest = {name: value for name, value in inputs.items() if name != "input_ids"}

    def run_with_hooks(self, tokens: Tensor, **options: Any) -> Any:
        with torch.no_grad():
            return self.bridge.run_with_hooks(tokens, **self.rest, **options)

    def run_with_cache(self, tokens: Tensor, **options: Any) -> Any:
        with torch.no_grad():
            return self.bridge.run_with_cache(tokens, **self.rest, **options)

    def to_tokens(self, *args: Any, **options: Any) -> Any:
        return self.bridge.to_tokens(*args, **options)


@pytest.fixture
def bridged(without_torchvision: None) -> Iterator[Callable[[str, Made], Bound]]:
    """Bridges of copies of the tiny models."""
    register_bridge_adapters()

    def make(name: str, made: Made) -> Bound:
        module = build(name)
        module.load_state_dict(copy.deepcopy(made.adapter.module.state_dict()))
        bridge = build_bridge_from_module(module, type(module).__name__, hf_config=module.config)
        return Bound(bridge.eval(), made.batch.inputs)

    yield make


@pytest.mark.parametrize("name", BRIDGED)
def test_bridge_and_hooks_agree(tiny: Tiny, bridged: Any, name: str) -> None:
    made = tiny(name)
    bound = bridged(name, made)
    logits, cache = as_tl_model(*made).run_with_cache()
    theirs, their_cache = bound.run_with_cache(made.batch.inputs["input_ids"])
    prompt = made.batch.prompt_mask

    def require_close(ours: Tensor, other: Tensor) -> None:
        """At positions of the prompt; what padding attends to means nothing."""
        assert ours.shape == other.shape
        if ours.shape[1] != prompt.shape[1]:  # patterns
            ours, other = ours.movedim(1, 2), other.movedim(1, 2)
        torch.testing.assert_close(ours[prompt], other[prompt], rtol=0, atol=1e-5)

    require_close(logits, theirs)
    shared = set(cache) & set(their_cache)
    only_ours = {key for key in set(cache) - shared if not key.endswith("hook_deepstack")}
    assert not only_ours
    assert len(shared) > 8 * made.adapter.n_layers
    # There the bridge has the embeddings of placeholders, which no layer ever sees.
    for key in shared - {"hook_embed"}:
        require_close(cache[key], their_cache[key])
    require_close(cache["hook_embed"], their_cache["blocks.0.hook_in"])


@pytest.mark.parametrize("name", [*BRIDGED, "qwen3_5", "gemma4", "cohere2_vision", "minicpmo"])
def test_traces_and_hooks_agree(tiny: Tiny, name: str) -> None:
    adapter, batch = tiny(name)
    hooked = to_activation_cache(adapter, batch)
    traced = to_activation_cache(adapter, batch, edit=lambda model: None)
    assert set(traced) <= set(hooked)
    missing = {key.rpartition("hook_")[2] for key in set(hooked) - set(traced)}
    assert missing <= {"q", "k", "v", "pattern", "scale"}
    for key in traced:
        assert torch.equal(traced[key], hooked[key]), key
    with adapter.trace(batch):
        middle = adapter.resid_post[1].save()
    assert torch.equal(hooked["resid_post", 1], middle)


@pytest.mark.parametrize("name", [*THINKERS, "llava"])
def test_patching_gives_the_grid_of_the_bridge(
    tiny: Tiny, bridged: Any, name: str, monkeypatch: pytest.MonkeyPatch, metric: Any
) -> None:
    monkeypatch.setattr(patching, "tqdm", list)
    made = tiny(name)
    model, bound = as_tl_model(*made), bridged(name, made)
    ids = model.to_tokens().clone()
    ids[:, -1] = 3
    _, clean = model.run_with_cache()
    sweep = patching.get_act_patch_attn_head_v_all_pos
    ours, theirs = (sweep(one, ids, clean, metric) for one in (model, bound))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len(ours.unique()) > 1


def test_registered_names_and_what_was_there(tiny: Tiny) -> None:
    names = register_bridge_adapters()
    assert register_bridge_adapters() == names
    factory: Any = ArchitectureAdapterFactory
    kept = [factory._adapters[name] for name in names]
    assert all(adapter.__module__.startswith("regap_interp") for adapter in kept)


def test_a_bridge_by_boot_transformers(tiny: Tiny, random_organism: Any, tmp_path: Any) -> None:
    import transformers

    register_bridge_adapters()
    module = build("qwen2_5_omni_thinker")
    module.config.architectures = [type(module).__name__]
    module.save_pretrained(tmp_path)
    random_organism.tokenizer.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=module, tokenizer=tokenizer, device="cpu"
    )
    adapter, batch = tiny("qwen2_5_omni_thinker")
    bound = Bound(bridge.eval(), batch.inputs)
    with torch.no_grad():
        expected = adapter.module(**batch.inputs).logits
    torch.testing.assert_close(
        bound.run_with_hooks(batch.inputs["input_ids"]), expected, rtol=0, atol=1e-5
    )
