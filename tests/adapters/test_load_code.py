"""Checkpoints that bring code of their own: never run unless the user says so."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import model_adapters
from model_adapters import LoadError
from model_adapters.families import TEXT_ONLY

IDS = torch.tensor([[5, 6, 7]])

CONFIGURATION = """
from transformers import Qwen2Config


class OwnConfig(Qwen2Config):
    model_type = "own_by_{name}"

    def __init__(self, with_voice=True, **options):
        super().__init__(**options)
        self.with_voice = with_voice
"""

MODELING = """
from torch import nn
from transformers import Qwen2ForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        if config.with_voice:
            self.voice = nn.Linear(2, 2)
        self.mended = hasattr(type(self), "mend")
"""


@pytest.fixture
def own(tmp_path: Path, text_adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose class is in a file of its own; what was imported is forgotten afterwards."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    path = list(sys.path)
    # What another test imported would be looked up first.
    sys.path[:] = [one for one in path if not (Path(one) / "transformers_modules").is_dir()]
    forget_foreign_code()
    folder = tmp_path / f"own_{tmp_path.name}"
    text_adapter.module.save_pretrained(folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.replace("{name}", tmp_path.name))
    (folder / "modeling_own.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": f"own_by_{tmp_path.name}",
        "architectures": ["OwnForCausalLM"],
        "with_voice": False,
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    yield folder
    sys.path[:] = path
    forget_foreign_code()


def forget_foreign_code() -> None:
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_foreign_code_is_not_run_by_itself(own: Path) -> None:
    (own / "modeling_own.py").write_text("raise SystemExit('run!')")
    with pytest.raises(LoadError) as caught:
        model_adapters.load(own)
    message = str(caught.value)
    for said in ("own code", "modeling_own.OwnForCausalLM", "Read the Python files", "revision="):
        assert said in message
    assert "trust_remote_code=True" in message


def test_foreign_code_that_is_trusted(own: Path, text_adapter: Any) -> None:
    loaded = model_adapters.load(own, trust_remote_code=True)
    assert type(loaded.module).__name__ == "OwnForCausalLM"
    with loaded.trace(input_ids=IDS):
        logits = loaded.logits.save()
    assert torch.equal(logits, text_adapter(input_ids=IDS).logits)


def test_what_a_family_does_before_and_after(own: Path) -> None:
    entered: list[str] = []

    class Importing:
        def __enter__(self) -> None:
            entered.append("importing")

        def __exit__(self, *args: object) -> None:
            entered.append("imported")

    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "with_voice": True}))
    with pytest.raises(LoadError, match="2 weights of OwnForCausalLM are not in"):
        model_adapters.load(own, trust_remote_code=True)
    family = dataclasses.replace(
        TEXT_ONLY,
        name="own",
        importing=Importing,
        prepare_class=lambda found: setattr(found, "mend", True),
        prepare=lambda model, tokenizer: setattr(model, "prepared", True),
        config_options={"with_voice": False},
    )
    loaded = model_adapters.load(own, trust_remote_code=True, family=family)
    assert loaded.family is family
    assert entered == ["importing", "imported"]
    assert loaded.module.mended
    assert loaded.module.prepared
    assert not hasattr(loaded.module, "voice")


def test_foreign_code_that_does_not_run(own: Path) -> None:
    (own / "modeling_own.py").write_text("from transformers import NoSuchThing")
    with pytest.raises(LoadError, match=r"does not run with transformers .*NoSuchThing"):
        model_adapters.load(own, trust_remote_code=True)


def test_an_auto_map_without_the_class(own: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "a.B"}}))
    with pytest.raises(LoadError, match="names no file with the class 'OwnForCausalLM'"):
        model_adapters.load(own, trust_remote_code=True)


def test_trust_changes_nothing_for_a_class_of_transformers(
    text_adapter: Any, tmp_path: Path
) -> None:
    text_adapter.module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Qwen2ForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_own.py").write_text("raise SystemExit('run!')")
    loaded = model_adapters.load(tmp_path, trust_remote_code=True)
    assert type(loaded.module) is transformers.Qwen2ForCausalLM


def test_a_family_for_a_model_without_an_entry(text_adapter: Any) -> None:
    family = dataclasses.replace(TEXT_ONLY, name="mine", mlp=("no_such_part",))
    with pytest.raises(LoadError, match="mine"):
        model_adapters.load(text_adapter.module, family=family)
    family = dataclasses.replace(TEXT_ONLY, name="mine")
    assert model_adapters.load(text_adapter.module, family=family).family.name == "mine"
