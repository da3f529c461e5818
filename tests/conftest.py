"""Settings every test runs under: no network, one thread."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

# Before anything imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import jaxtyping
import pytest
import torch

import tests.checker  # noqa: F401  named by --jaxtyping-packages, which does not import it

if TYPE_CHECKING:
    from model_adapters import Adapter

# Small tensors: more threads cost more than they save, and make sums depend on the machine.
torch.set_num_threads(1)


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """Without the shape checks of the test run, which would answer before our own errors do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as users have it, also where the test run itself was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def random_organism() -> "Adapter":
    """The organism's architecture and processor with random weights: quick, and knows nothing."""
    import model_adapters
    from model_adapters.organism.build import build_model, build_processor, build_tokenizer

    model = build_model(build_tokenizer(), seed=0).eval()
    return model_adapters.load(model, processor=build_processor())
