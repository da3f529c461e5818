"""Models from a folder, a hub id, an embedded name, or built by the user."""

import json
import pickle
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import model_adapters
from model_adapters import Adapter, InputError, LoadError, SiteError, registry

IDS = torch.tensor([[5, 6, 7]])


def test_a_built_model(adapter: Adapter) -> None:
    assert (adapter.n_layers, adapter.d_model, adapter.n_heads) == (4, 32, 4)
    assert (adapter.d_head, adapter.d_vocab) == (8, 120)
    assert adapter.media == {"image", "audio", "video"}
    assert adapter.model_id == "Qwen2_5OmniThinkerForConditionalGeneration"
    assert adapter.pad_id == 0


def test_a_built_model_is_put_in_evaluation_mode(fresh_thinker: Callable[[], Any]) -> None:
    model = fresh_thinker().train()
    assert model_adapters.load(model).module is model
    assert not model.training


def test_a_folder_without_processor(
    fresh_thinker: Callable[[], Any], tmp_path: Path, parts: Any
) -> None:
    model = fresh_thinker()
    model.save_pretrained(tmp_path)
    loaded = model_adapters.load(tmp_path)
    with loaded.trace(input_ids=IDS):
        logits = loaded.logits.save()
    with torch.no_grad():
        assert torch.equal(logits, model(input_ids=IDS).logits)
    with pytest.raises(InputError, match=r"no processor|saved without one: load\(model, proc"):
        loaded.encode([parts.user("w5")])
    with pytest.raises(InputError, match="no tokenizer to decode with"):
        _ = loaded.generate(input_ids=IDS, max_new_tokens=1).texts


def test_a_folder_with_a_processor_of_ours(
    adapter: Adapter,
    small_processor: Any,
    tmp_path: Path,
    parts: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter.module.save_pretrained(tmp_path)
    name = {"processor_class": "SmallProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(name))
    small = type(small_processor)
    monkeypatch.setattr(small, "from_pretrained", lambda folder: small(), raising=False)
    monkeypatch.setitem(registry.PROCESSORS, "SmallProcessor", "here:SmallProcessor")
    here = type(sys)("here")
    here.SmallProcessor = small  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "here", here)
    loaded = model_adapters.load(str(tmp_path))
    batch = loaded.encode([parts.user("w5", parts.picture())])
    assert torch.equal(loaded(batch).logits, adapter(batch).logits)


def test_a_folder_with_a_tokenizer_only(
    adapter: Adapter, small_processor: Any, tmp_path: Path, parts: Any
) -> None:
    adapter.module.save_pretrained(tmp_path)
    small_processor.tokenizer.save_pretrained(tmp_path)
    loaded = model_adapters.load(tmp_path)
    with pytest.raises(InputError, match="saved without one"):
        loaded.encode([parts.user("w5")])
    answers = loaded.generate(input_ids=IDS, max_new_tokens=2)
    assert len(answers.texts) == 1
    assert loaded.module.generation_config.eos_token_id == small_processor.tokenizer.eos_token_id


def test_a_processor_that_cannot_be_built_here(
    adapter: Adapter, tmp_path: Path, parts: Any
) -> None:
    adapter.module.save_pretrained(tmp_path)
    name = {"processor_class": "Qwen2_5OmniProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(name))
    loaded = model_adapters.load(tmp_path)
    with loaded.trace(input_ids=IDS):
        loaded.resid_post[0].save()
    with pytest.raises(InputError, match="Qwen2_5OmniProcessor could not be built here"):
        loaded.encode([parts.user("w5")])


def test_half_precision_on_disk_computed_in_single(
    fresh_thinker: Callable[[], Any], tmp_path: Path
) -> None:
    fresh_thinker().half().save_pretrained(tmp_path)
    assert model_adapters.load(tmp_path).module.dtype == torch.float16
    assert model_adapters.load(tmp_path, dtype="float32").module.dtype == torch.float32
    assert model_adapters.load(tmp_path, dtype=torch.bfloat16).module.dtype == torch.bfloat16
    config = json.loads((tmp_path / "config.json").read_text())
    config["regap_interp"] = {"compute_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_adapters.load(tmp_path).module.dtype == torch.float32
    assert model_adapters.load(tmp_path, dtype="bfloat16").module.dtype == torch.bfloat16


def test_a_full_omni_checkpoint_gives_its_thinker(full_omni: Any, tmp_path: Path) -> None:
    full_omni.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = full_omni.thinker(input_ids=IDS).logits
    for loaded in (model_adapters.load(tmp_path), model_adapters.load(full_omni)):
        assert type(loaded.module).__name__ == "Qwen2_5OmniThinkerForConditionalGeneration"
        with loaded.trace(input_ids=IDS):
            logits = loaded.logits.save()
        assert torch.equal(logits, expected)


def test_missing_weights_are_not_made_up(fresh_thinker: Callable[[], Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    fresh_thinker().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"1 weights of .* they would be random"):
        model_adapters.load(tmp_path)


@pytest.mark.parametrize("name", ["no/such-model", "/nowhere/at/all"])
def test_a_name_that_leads_nowhere(name: str) -> None:
    with pytest.raises(LoadError, match=r"neither an embedded name \('organism'\).*offline|HF_HUB"):
        model_adapters.load(name, local_files_only=True)


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no folder"):
        model_adapters.load(tmp_path / "absent")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json"):
        model_adapters.load(tmp_path)


def test_a_module_that_is_no_transformers_model() -> None:
    with pytest.raises(LoadError, match="Linear is not a transformers model"):
        model_adapters.load(torch.nn.Linear(1, 1))


def test_options_of_loading_for_a_built_model(fresh_thinker: Callable[[], Any]) -> None:
    with pytest.raises(LoadError, match="for models still to be loaded"):
        model_adapters.load(fresh_thinker(), dtype="float32")


def test_a_multimodal_model_without_a_family() -> None:
    config = transformers.CLIPConfig()
    model = torch.nn.Linear(1, 1)
    model.config = config  # type: ignore[assignment]
    with pytest.raises(LoadError, match=r"no family for model_type 'clip'.*qwen2_5_omni_thinker"):
        model_adapters.load(model)


def test_an_embedded_name_is_the_folder_it_stands_for(
    fresh_thinker: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_thinker().save_pretrained(tmp_path)
    monkeypatch.setitem(registry.EMBEDDED, "tiny", tmp_path)
    assert model_adapters.load("tiny").model_id == "tiny"


@pytest.fixture
def text_model() -> Any:
    config = transformers.Qwen2Config(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return transformers.Qwen2ForCausalLM(config)


def test_a_text_only_model_comes_free(text_model: Any, small_processor: Any, parts: Any) -> None:
    tokenizer = small_processor.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w99"
    adapter = model_adapters.load(text_model, processor=tokenizer)
    batch = adapter.encode([parts.user("w5 w6"), parts.user("w7")])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 99], [0, 7, 99]]
    assert adapter.media == frozenset()
    with adapter.trace(batch):
        adapter.resid_mid[1] = adapter.resid_mid[1] * 2
        logits = adapter.logits.save()
    assert logits.shape == (2, 3, 120)
    for medium, part in (("image", parts.picture()), ("audio", parts.sound())):
        with pytest.raises(InputError, match=f"this model takes no {medium}; it takes text"):
            adapter.encode([parts.user("w5", part)])
    with pytest.raises(InputError, match="takes no 'pixel_values'"):
        adapter.trace(input_ids=IDS, pixel_values=torch.zeros(4, 96))


def test_one_lock_for_all_adapters_of_a_model(fresh_thinker: Callable[[], Any]) -> None:
    model = fresh_thinker()
    adapters = [model_adapters.load(model), model_adapters.load(model)]
    with adapters[0].trace(input_ids=IDS):
        expected = adapters[0].resid_post[2].save()
    wrong: list[Any] = []

    def work(adapter: Adapter) -> None:
        try:
            for _ in range(5):
                if not torch.equal(read(adapter), expected):
                    wrong.append("another value")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(adapters[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def read(adapter: Adapter) -> torch.Tensor:
    """One trace in a frame of its own."""
    with adapter.trace(input_ids=IDS):
        residual = adapter.resid_post[2].save()
    return residual


def test_errors_are_what_a_caller_would_catch() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(model_adapters.LayerError, IndexError)
    for error in (InputError, SiteError, LoadError, model_adapters.SelfCheckError):
        assert issubclass(error, model_adapters.AdapterError)


def changed(path: Path, **entries: Any) -> None:
    """Rewrite entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


BAD_CONFIGS = {
    "no class": ({"architectures": None}, "does not name the class of its model"),
    "a number": ({"architectures": [3]}, "does not name the class of its model"),
    "a function": ({"architectures": ["pipeline"]}, "'pipeline', which is no model"),
    "no model": ({"architectures": ["AutoConfig"]}, "'AutoConfig', which is no model"),
    "no such type": ({"regap_interp": {"compute_dtype": "banana"}}, "'banana' is no floating"),
    "a type of integers": ({"regap_interp": {"compute_dtype": "int8"}}, "'int8' is no floating"),
    "not ours": ({"regap_interp": 3}, "3 is no floating-point type"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_cannot_be_followed(saved: Path, name: str) -> None:
    entries, message = BAD_CONFIGS[name]
    changed(saved / "config.json", **entries)
    with pytest.raises(LoadError, match=message):
        model_adapters.load(saved)


def test_an_empty_entry_of_ours_is_none(saved: Path) -> None:
    changed(saved / "config.json", regap_interp=None)
    assert model_adapters.load(saved).n_layers == 4


def test_a_misspelt_dtype(saved: Path) -> None:
    with pytest.raises(LoadError, match="'floaty' is no floating-point type of torch"):
        model_adapters.load(saved, dtype="floaty")


def test_weights_that_are_broken_absent_or_pickled(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(LoadError, match=r"could not be read; .*whole.*The cause"):
        model_adapters.load(saved)
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(LoadError, match="must be there, whole, as safetensors") as caught:
        model_adapters.load(saved)
    assert "weights_only" not in str(caught.value)


class Explosive:
    """A pickle that shows when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the pickle was opened",)


BAD_PROCESSORS = {
    "broken": ("{", "is no JSON file"),
    "a list": ("[1]", r"must be .*; it holds \[1\]"),
    "a list of names": ('{"processor_class": ["x"]}', r"it holds \['x'\]"),
    "nothing but the name": ('{"processor_class": "OrganismProcessor"}', "could not be built from"),
}


@pytest.mark.parametrize("name", BAD_PROCESSORS)
def test_a_processor_config_that_cannot_be_followed(
    saved: Path, random_organism: Adapter, name: str
) -> None:
    random_organism.processor.save_pretrained(saved)
    text, message = BAD_PROCESSORS[name]
    (saved / "processor_config.json").write_text(text)
    with pytest.raises(LoadError, match=message):
        model_adapters.load(saved)


@pytest.fixture
def saved(adapter: Adapter, tmp_path: Path) -> Path:
    """The tiny thinker in a folder."""
    adapter.module.save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_that_cannot_be_built_here(
    text_model: Any, small_processor: Any, tmp_path: Path, parts: Any
) -> None:
    text_model.save_pretrained(tmp_path)
    small_processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    loaded = model_adapters.load(tmp_path)
    assert loaded(input_ids=IDS).logits.isfinite().all()
    with pytest.raises(InputError, match="its tokenizer could not be built here"):
        loaded.encode([parts.user("w5")])
