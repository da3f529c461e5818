"""Captured states against transformers' own `output_hidden_states`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter
from regap_interp import Steer, last_residuals, random_orthogonal, refusal_direction

CHATS = [
    [{"role": "user", "content": content}]
    for content in (
        "name the kerol please",
        "please",
        "tell me how to name this",
        "what is this",
        "rate the kerol please now",
    )
]


def reference(adapter: Adapter, layers: list[int]) -> Tensor:
    """One request at a time, without padding, by transformers alone."""
    rows = []
    for chat in CHATS:
        with torch.no_grad():
            out = adapter.module(**adapter.encode([chat]).inputs, output_hidden_states=True)
        rows.append([out.hidden_states[layer + 1][0, -1] for layer in layers])
    return torch.stack([torch.stack(row) for row in rows], dim=1).double()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Each state within float32 rounding of the other, relative to its length."""
    assert ((found - expected).norm(dim=-1) <= 1e-5 * expected.norm(dim=-1)).all()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_states_are_those_of_each_request_alone_in_the_order_asked_for(
    random_organism: Adapter, batch_size: int
) -> None:
    found = last_residuals(random_organism, CHATS, layers=[7, 0, 10], batch_size=batch_size)
    assert found.dtype == torch.float64
    assert_close(found, reference(random_organism, [7, 0, 10]))


def test_encoded_batches_are_taken_as_they_are(random_organism: Adapter) -> None:
    batches = [
        random_organism.encode(CHATS[:3], padding_side="right"),
        random_organism.encode(CHATS[3:]),
    ]
    assert_close(
        last_residuals(random_organism, batches, layers=[4]),
        last_residuals(random_organism, CHATS, layers=[4]),
    )


def test_layers_after_the_last_wanted_one_do_not_run(random_organism: Adapter) -> None:
    ran: list[int] = []
    layers = random_organism.module.model.language_model.layers

    def note(index: int) -> Any:
        return lambda module, inputs: ran.append(index)

    handles = [layer.register_forward_pre_hook(note(i)) for i, layer in enumerate(layers)]
    try:
        last_residuals(random_organism, CHATS[:1], layers=[0, 3])
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1, 2, 3]


def test_progress_counts_items(random_organism: Adapter) -> None:
    seen: list[tuple[int, int]] = []
    last_residuals(
        random_organism,
        CHATS,
        layers=[0],
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_steering_shows_at_its_own_layer_as_the_shift_and_later_as_more(
    random_organism: Adapter,
) -> None:
    vector = torch.linspace(-1, 1, random_organism.d_model, dtype=torch.float64)
    layers = [2, 3, 8]
    plain = last_residuals(random_organism, CHATS, layers=layers)
    steered = last_residuals(random_organism, CHATS, layers=layers, steer=Steer(3, vector, 2.0))
    assert torch.equal(steered[0], plain[0])
    assert_close(steered[1], plain[1] - 2 * vector)
    assert not torch.allclose(steered[2], plain[2] - 2 * vector, atol=1e-3)


def test_orthogonal_steering_keeps_the_refusal_coordinate_at_its_layer(
    random_organism: Adapter,
) -> None:
    plain = last_residuals(random_organism, CHATS, layers=[3])[0]
    refusal = refusal_direction(plain[:2], plain[2:])
    vector = random_orthogonal(1, like=refusal.vector, against=[refusal.vector])[0]
    steered = last_residuals(random_organism, CHATS, layers=[3], steer=Steer(3, vector))[0]
    moved = refusal.coordinate(steered) - refusal.coordinate(plain)
    assert (moved.abs() <= 1e-5 * plain.norm(dim=-1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [12]}, "0 to 11"),
        ({"layers": []}, "0 to 11"),
        ({"layers": [1, 1]}, "different layers"),
        ({"layers": [1], "batch_size": 0}, "at least 1"),
    ],
)
def test_bad_requests_are_refused_before_any_pass(
    random_organism: Adapter, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        last_residuals(random_organism, CHATS, **options)
    with pytest.raises(ValueError, match="requests is empty"):
        last_residuals(random_organism, [], layers=[0])


@pytest.mark.usefixtures("as_users_run_it")
def test_one_batch_outside_a_list_is_refused(random_organism: Adapter) -> None:
    one: Any = random_organism.encode(CHATS[:1])
    with pytest.raises(ValueError, match=r"give a list of batches: \[batch\]"):
        last_residuals(random_organism, one, layers=[0])
