"""Steering as a pure edit, inside traces and in generation, against plain hooks on the model."""

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from regap_interp import Steer, random_orthogonal

LAYER = 5


@pytest.fixture(scope="module")
def batch(random_organism: Adapter) -> Batch:
    """Two requests of different length and media, so that one row is padded."""
    picture = torch.rand(24, 96, 3, generator=torch.Generator().manual_seed(0)).numpy()
    short = [{"role": "user", "content": "name the kerol please"}]
    long = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "please tell me how to name"},
                {"type": "image", "image": (picture * 255).astype("uint8")},
            ],
        }
    ]
    return random_organism.encode([short, long])


@pytest.fixture(scope="module")
def vector(random_organism: Adapter) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(random_organism.d_model, generator=generator, dtype=torch.float64)


def logits(adapter: Adapter, batch: Batch, steer: Steer | None = None) -> Tensor:
    with adapter.trace(batch):
        if steer is not None:
            steer.apply(adapter, batch)
        found = adapter.logits.save()
    return found


def hooked_logits(adapter: Adapter, batch: Batch, steer: Steer) -> Tensor:
    """The same edit by a plain hook on the transformers model."""
    shift = (steer.strength * steer.vector).float() * batch.prompt_mask.unsqueeze(-1)
    layer = adapter.module.model.language_model.layers[steer.layer]
    handle = layer.register_forward_hook(lambda module, inputs, output: output - shift)
    try:
        with torch.no_grad():
            found: Tensor = adapter.module(**batch.inputs).logits
    finally:
        handle.remove()
    return found


def test_edit_moves_prompt_positions_only_and_keeps_the_dtype() -> None:
    states = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    steer = Steer(0, torch.tensor([1.0, -2.0], dtype=torch.float64), strength=0.5)
    edited = steer.edit(states, torch.tensor([[False, True, True]]))
    assert edited.dtype == torch.bfloat16
    assert edited.tolist() == [[[1.0, 1.0], [0.5, 2.0], [0.5, 2.0]]]


def test_steered_trace_equals_a_plain_hook(
    random_organism: Adapter, batch: Batch, vector: Tensor
) -> None:
    steer = Steer(LAYER, vector, strength=1.5)
    steered = logits(random_organism, batch, steer)
    torch.testing.assert_close(steered, hooked_logits(random_organism, batch, steer))
    assert not torch.allclose(steered, logits(random_organism, batch))


def test_zero_strength_is_the_bare_model_bit_for_bit(
    random_organism: Adapter, batch: Batch, vector: Tensor
) -> None:
    with torch.no_grad():
        bare = random_organism.module(**batch.inputs).logits
    assert torch.equal(logits(random_organism, batch, Steer(LAYER, vector, strength=0)), bare)


def test_the_model_is_bare_again_after_a_steered_trace(
    random_organism: Adapter, batch: Batch, vector: Tensor
) -> None:
    before = logits(random_organism, batch)
    logits(random_organism, batch, Steer(LAYER, vector))
    assert torch.equal(logits(random_organism, batch), before)


def test_generation_goes_on_from_the_corrected_prefill(
    random_organism: Adapter, batch: Batch, vector: Tensor
) -> None:
    steer = Steer(LAYER, vector, strength=2)
    generated = steer.generate(random_organism, batch, max_new_tokens=4)

    layer = random_organism.module.model.language_model.layers[LAYER]
    shift = (steer.strength * vector).float() * batch.prompt_mask.unsqueeze(-1)

    def prefill_only(module: object, inputs: object, output: Tensor) -> Tensor:
        return output - shift if output.shape[1] > 1 else output

    handle = layer.register_forward_hook(prefill_only)
    try:
        with torch.no_grad():
            whole = random_organism.module.generate(
                **batch.inputs, max_new_tokens=4, do_sample=False
            )
    finally:
        handle.remove()
    expected = whole[:, batch.roles.shape[1] :]
    assert torch.equal(generated.tokens[:, : expected.shape[1]], expected)


def test_controls_are_orthogonal_equally_long_and_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    refusal, other, drift = torch.randn(3, 128, generator=generator, dtype=torch.float64)
    drawn = random_orthogonal(10, like=drift, against=[refusal, other], seed=4)
    assert drawn.shape == (10, 128)
    torch.testing.assert_close(drawn.norm(dim=1), drift.norm().expand(10))
    assert (drawn @ torch.stack([refusal, other]).T).abs().max() < 1e-11
    assert torch.equal(drawn, random_orthogonal(10, like=drift, against=[refusal, other], seed=4))
    assert not torch.equal(drawn, random_orthogonal(10, like=drift, against=[refusal], seed=5))


def test_controls_are_refused_when_no_dimension_is_left() -> None:
    with pytest.raises(ValueError, match="spans all 2 dimensions"):
        random_orthogonal(1, like=torch.ones(2), against=[torch.ones(2), torch.tensor([1.0, 0])])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("steer", "message"),
    [
        (Steer(12, torch.ones(128)), "has layers 0 to 11"),
        (Steer(-1, torch.ones(128)), "layer is -1"),
        (Steer(5, torch.ones(64)), "states of width 128"),
        (Steer(5, torch.full((128,), torch.inf)), "not finite"),
    ],
)
def test_steering_made_for_another_model_is_refused(
    random_organism: Adapter, batch: Batch, steer: Steer, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        steer.generate(random_organism, batch, max_new_tokens=1)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_prefill_beside_the_steering_is_refused(
    random_organism: Adapter, batch: Batch, vector: Tensor, strength: float
) -> None:
    steer = Steer(LAYER, vector, strength)
    with pytest.raises(ValueError, match="edits the prefill itself"):
        steer.generate(random_organism, batch, max_new_tokens=1, prefill=lambda running: None)
