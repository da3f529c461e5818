"""Checkpoints in other precisions, in several files, offloaded, quantised, from the cache."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from torch import Tensor, nn

import model_adapters
from model_adapters import Adapter, LoadError

IDS = torch.tensor([[5, 6, 7]])
LANGUAGE = "model.language_model"
SOME = (f"{LANGUAGE}.layers.1", "lm_head")
MOST = (
    *(f"{LANGUAGE}.layers.{i}" for i in range(4)),
    f"{LANGUAGE}.embed_tokens",
    f"{LANGUAGE}.norm",
    "lm_head",
    "model.visual",
    "model.audio_tower",
)


@pytest.fixture
def saved(fresh_thinker: Callable[[], Any], tmp_path: Path) -> Path:
    """The tiny thinker in a folder of many small files."""
    fresh_thinker().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    return tmp_path / "model"


def on_disk(parts: tuple[str, ...]) -> dict[str, str]:
    """A device map of the tiny thinker with so many parts on disk."""
    inner = ("embed_tokens", "norm", "rotary_emb", *(f"layers.{i}" for i in range(4)))
    everything = ["lm_head", "model.visual", "model.audio_tower"]
    everything += [f"{LANGUAGE}.{name}" for name in inner]
    return {name: "disk" if name in parts else "cpu" for name in everything}


def everything(adapter: Adapter, batch: Any) -> list[Tensor]:
    """Reads, a write, answers under a hook, and readouts."""
    with adapter.trace(batch):
        middle = adapter.resid_post[1].clone().save()
        adapter.resid_post[1] = middle * 1.5
        adapter.result[2] *= 2
        heads = adapter.attn_out[2].save()
        logits = adapter.logits.save()
    handle = adapter.hook("result", 1, lambda value: value * 2)
    answers = adapter.generate(batch, max_new_tokens=4).tokens
    handle.remove()
    return [middle, heads, logits, answers, adapter.unembed(middle[:, -1])]


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts_on_disk", [SOME, MOST], ids=["some", "most"])
def test_weights_on_disk_change_nothing(
    saved: Path,
    tmp_path: Path,
    small_processor: Any,
    parts: Any,
    dtype: str,
    parts_on_disk: tuple[str, ...],
) -> None:
    there = model_adapters.load(saved, processor=small_processor, dtype=dtype)
    away = model_adapters.load(
        saved,
        processor=small_processor,
        dtype=dtype,
        device_map=on_disk(parts_on_disk),
        offload_folder=tmp_path / "offload",
    )
    assert sum(p.is_meta for p in away.module.parameters()) >= 10
    assert away.device.type == "cpu"
    batch = there.encode([parts.user("w5", parts.picture(), parts.sound()), parts.user("w6")])
    for got, expected in zip(everything(away, batch), everything(there, batch), strict=True):
        assert torch.equal(got, expected)
    few = torch.randn(3, 32)
    torch.testing.assert_close(away.unembed(few, [4, 5]), there.unembed(few, [4, 5]))
    assert away.fingerprint == there.fingerprint


def test_a_model_that_its_user_has_offloaded(
    fresh_thinker: Callable[[], Any], adapter: Adapter
) -> None:
    away = model_adapters.load(cpu_offload(fresh_thinker(), execution_device="cpu"))
    assert all(parameter.is_meta for parameter in away.module.parameters())
    assert away.device.type == "cpu"
    with away.trace(input_ids=IDS):
        logits = away.logits.save()
    assert torch.equal(logits, adapter(input_ids=IDS).logits)
    assert away.fingerprint == adapter.fingerprint


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_device_map_made_by_accelerate(saved: Path, dtype: str | None) -> None:
    loaded = model_adapters.load(saved, dtype=dtype, device_map="auto")
    assert loaded.module.dtype == (torch.bfloat16 if dtype else torch.float32)
    assert loaded(input_ids=IDS).logits.isfinite().all()


def test_bad_maps_and_missing_accelerate(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match=r"could not be loaded: .*device name"):
        model_adapters.load(saved, device_map="nowhere")
    from transformers.integrations import accelerate

    monkeypatch.setattr(accelerate, "is_accelerate_available", lambda: False)
    with pytest.raises(LoadError, match=r"pip install accelerate"):
        model_adapters.load(saved, device_map="auto")


def test_bfloat16_sites_obey_their_identities(saved: Path) -> None:
    loaded = model_adapters.load(saved, dtype="bfloat16")
    assert max(loaded.self_check.differences.values()) < 1e-2
    hook = loaded.module.get_submodule(f"{LANGUAGE}.layers.1.mlp")
    handle = hook.register_forward_hook(lambda module, args, output: output * 1.1)
    with pytest.raises(model_adapters.SelfCheckError):
        model_adapters.load(loaded.module)
    handle.remove()


def test_only_the_language_part_is_read(
    full_omni: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import core_model_loading

    full_omni.save_pretrained(tmp_path, max_shard_size="20KB")
    read: list[int] = []
    copy = core_model_loading._materialize_copy

    def counted(tensor: Any, *args: Any) -> Tensor:
        values: Tensor = copy(tensor, *args)
        read.append(values.numel())
        return values

    monkeypatch.setattr(core_model_loading, "_materialize_copy", counted)
    loaded = model_adapters.load(tmp_path)
    own = [parameter.numel() for parameter in full_omni.thinker.parameters()]
    assert sorted(read) == sorted(own)
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == sum(own)
    assert sum(own) < sum(parameter.numel() for parameter in full_omni.parameters())


def test_the_cache_of_the_hub(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Adapter
) -> None:
    cache, commits = tmp_path / "cache" / "models--some--model", ("a" * 40, "b" * 40)
    for commit in commits:
        (cache / "snapshots").mkdir(parents=True, exist_ok=True)
        saved.rename(cache / "snapshots" / commit) if commit == commits[0] else None
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[0])
    (cache / "refs" / "broken").write_text(commits[1])
    (cache / "snapshots" / commits[1]).mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for options in ({}, {"revision": commits[0]}, {"revision": "main"}):
        loaded = model_adapters.load("some/model", local_files_only=True, **options)
        assert loaded.fingerprint == adapter.fingerprint
        assert loaded.model_id == "some/model"
    for revision in ("broken", "c" * 40, commits[1]):
        with pytest.raises(LoadError, match="only files downloaded before are found"):
            model_adapters.load("some/model", local_files_only=True, revision=revision)


needs_no_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)


@needs_no_bitsandbytes
def test_quantising_without_the_package(saved: Path) -> None:
    with pytest.raises(LoadError, match=r"pip install -U bitsandbytes"):
        model_adapters.load(
            saved, quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True)
        )


@needs_no_bitsandbytes
@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_saved_quantised_without_the_package(
    full_omni: Any, tmp_path: Path, whole: bool
) -> None:
    (full_omni if whole else full_omni.thinker).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    quantised["llm_int8_skip_modules"] = ["thinker.lm_head"]
    config["quantization_config"] = quantised
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"pip install -U bitsandbytes"):
        model_adapters.load(tmp_path)


def test_options_of_placement_for_a_built_model(fresh_thinker: Callable[[], Any]) -> None:
    for options in ({"device_map": "auto"}, {"max_memory": {}}, {"trust_remote_code": True}):
        with pytest.raises(LoadError, match="for models still to be loaded"):
            model_adapters.load(fresh_thinker(), **options)


class Packed(nn.Linear):
    """A linear map whose `weight` holds codes, as quantised maps have it."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.step = float(plain.weight.detach().abs().max()) / 127
        codes = (plain.weight / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = plain.bias

    def forward(self, value: Tensor) -> Tensor:
        return nn.functional.linear(value, self.weight.to(value.dtype) * self.step, self.bias)


@pytest.mark.parametrize("bias", [False, True])
def test_heads_behind_a_quantised_map(bias: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_bias=bias,
        initializer_range=0.2,
    )
    plain: Any = transformers.LlamaForCausalLM(config)
    packed: Any = transformers.LlamaForCausalLM(config)
    packed.load_state_dict(plain.state_dict())
    for ours, theirs in zip(packed.model.layers, plain.model.layers, strict=True):
        attention = ours.self_attn
        if bias:
            nn.init.normal_(attention.o_proj.bias)
        attention.o_proj = Packed(attention.o_proj)
        weight = attention.o_proj.weight * attention.o_proj.step
        theirs.self_attn.o_proj.weight.data = weight
        if bias:
            theirs.self_attn.o_proj.bias.data = attention.o_proj.bias.data
    found = []
    for adapter in (model_adapters.load(packed), model_adapters.load(plain)):
        with adapter.trace(input_ids=IDS):
            live = adapter.result[1]
            heads = live.clone().save()
            live[:, :, 2] = 0
            changed = adapter.attn_out[1].save()
        handle = adapter.hook("result", 0, lambda value: value * 2)
        hooked = adapter(input_ids=IDS).logits
        handle.remove()
        found.append([heads, changed, hooked])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_quantised_while_it_loads(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    config = transformers.Qwen2Config(
        vocab_size=120,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "whole")
    how = {"quantization_config": transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})}
    first = model_adapters.load(tmp_path / "whole", **how)
    first.module.save_pretrained(tmp_path / "quantised")
    again = model_adapters.load(tmp_path / "quantised")
    for adapter in (first, again):
        with adapter.trace(input_ids=IDS):
            parts, whole = adapter.result[1].save(), adapter.attn_out[1].save()
            logits = adapter.logits.save()
        with torch.no_grad():
            assert torch.equal(logits, adapter.module(input_ids=IDS).logits)
        assert (parts.sum(dim=2) - whole).abs().max() < 0.05 * whole.abs().max()
    assert again.fingerprint == first.fingerprint


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
def test_a_head_that_shares_weights(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    everything = ["model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"]
    apart = {name: "disk" if name == "lm_head" else "cpu" for name in everything}
    with pytest.raises(LoadError, match=r"does not run with this device_map: .*that it shares"):
        model_adapters.load(tmp_path, device_map=apart)
    away = model_adapters.load(tmp_path, device_map=dict.fromkeys(everything, "disk"))
    there = model_adapters.load(model)
    assert away.fingerprint == there.fingerprint
    assert torch.equal(away(input_ids=IDS).logits, there(input_ids=IDS).logits)
