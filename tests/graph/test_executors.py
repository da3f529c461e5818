"""One graph, every way to run it: the same results, equal to hand-written plain hooks.

The ways: in a trace of the user's, installed on the raw model and resumed, installed with every
pass from the start, and `Graph.run`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regap_interp as ri
from model_adapters import Adapter, Batch
from tests.graph.conftest import hooked, last_logits, last_state, layer_of

EARLY, LATE = 4, 7


def masked(states: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, :, None], edited.to(states.dtype), states)


def steer(vectors: Tensor) -> ri.Graph:
    return ri.Graph(ri.add("resid_post", EARLY, vectors[0], strength=-1.5))


def ablate(vectors: Tensor) -> ri.Graph:
    return ri.Graph(*(ri.remove("resid_post", layer, vectors[1]) for layer in range(12)))


def clamp(vectors: Tensor) -> ri.Graph:
    return ri.Graph(ri.set_coordinate("resid_post", EARLY, vectors[1], 2.5, at="last"))


def images_only(vectors: Tensor) -> ri.Graph:
    return ri.Graph(ri.add("resid_post", EARLY, vectors[0], at="image", keep_norm=True))


def gate_here(vectors: Tensor) -> ri.Graph:
    here = ri.read("resid_post", EARLY).project(vectors[1])
    edit = ri.add("resid_post", EARLY, vectors[0], strength=ri.select(here > 0, -1, 0.5))
    return ri.Graph(edit, outputs={"coordinate": here})


def inside_layers(vectors: Tensor) -> ri.Graph:
    return ri.Graph(
        ri.add("embed", None, vectors[2], strength=0.1),
        ri.remove("z", 3, vectors[3][:32], head=1),
        ri.add("resid_mid", 3, vectors[4], strength=0.2),
        ri.add("attn_out", 5, vectors[5], at=(0, -1)),
        ri.replace("mlp_out", 6, vectors[6], at="text", strength=0.5),
        ri.add("logits", None, torch.ones(random_width, dtype=torch.float64)),
    )


def paired(vectors: Tensor, threshold: float = 0.0, otherwise: float = 0.0) -> ri.Graph:
    media = ~ri.modality("text")
    weak = ri.add("resid_post", EARLY, vectors[0], strength=ri.select(media, -0.5, 0))
    gain = ri.read("resid_post", LATE, under=[weak]).project(vectors[1]) - ri.read(
        "resid_post", LATE, under=[]
    ).project(vectors[1])
    strength = ri.select(media, ri.select(gain > threshold, -1.5, otherwise), 0)
    return ri.Graph(
        ri.add("resid_post", EARLY, vectors[0], strength=strength),
        outputs={"gain": gain, "later": ri.read("resid_post", LATE).project(vectors[2])},
    )


def partly(vectors: Tensor) -> ri.Graph:
    """Opens in some rows: the median of the probe's coordinate is the threshold."""
    return paired(vectors, threshold=0.35, otherwise=-0.5)


def from_the_start(vectors: Tensor) -> ri.Graph:
    """A probe whose edits stand before the first layer."""
    weak = ri.add("embed", None, vectors[0], strength=-0.05)
    value = ri.read("resid_post", LATE, under=[weak]).project(vectors[1])
    strength = ri.select(value > 0.0, -0.1, -0.05)
    return ri.Graph(
        ri.add("embed", None, vectors[0], strength=strength),
        ri.add("embed", None, vectors[3], strength=0.1),
        outputs={"value": value},
    )


def twice(vectors: Tensor) -> ri.Graph:
    """An edit made twice is not the probe that makes it once."""
    edit = ri.add("resid_post", EARLY, vectors[0])
    value = ri.read("resid_post", LATE, under=[edit]).project(vectors[1])
    return ri.Graph(edit, edit, outputs={"value": value})


def swapped(vectors: Tensor) -> ri.Graph:
    """States of two positions, put in each other's place."""
    first = ri.read("resid_post", EARLY, at=(-1, 0))
    return ri.Graph(ri.replace("resid_post", EARLY, first, at=(0, -1)))


def clamped_to_a_state(vectors: Tensor) -> ri.Graph:
    goal = ri.constant(vectors[2]).project(vectors[1])
    probe = ri.read("resid_post", LATE, under=[]).project(vectors[1])
    strength = ri.select(probe > 0, 1, 0.5)
    edit = ri.set_coordinate("resid_post", EARLY, vectors[1], goal, strength=strength)
    return ri.Graph(edit, outputs={"probe": probe})


def nested(vectors: Tensor) -> ri.Graph:
    """A probe whose strength another probe decides, and an edit inside a layer that both decide."""
    bare = ri.read("resid_post", 5, under=[]).project(vectors[1])
    first = ri.add("attn_out", 3, vectors[0], strength=ri.select(bare > 0, -0.5, -0.25))
    second = ri.read("mlp_out", 6, at="prompt", under=[first]).mean().project(vectors[2])
    return ri.Graph(
        ri.add("resid_pre", 2, vectors[3], strength=0.3),
        ri.add("attn_out", 3, vectors[0], strength=(second / 10).clip(-1, 1)),
        outputs={"bare": bare, "second": second},
    )


def patched_from_a_probe(vectors: Tensor) -> ri.Graph:
    """States of a steered pass put into the bare one, at every position."""
    probe = ri.add("resid_post", 2, vectors[0])
    return ri.Graph(
        ri.replace(
            "resid_post",
            EARLY,
            ri.read("resid_post", EARLY, at="prompt", under=[probe]),
            at="prompt",
        )
    )


random_width = 0
GRAPHS = [
    steer,
    ablate,
    clamp,
    images_only,
    gate_here,
    inside_layers,
    paired,
    partly,
    from_the_start,
    twice,
    swapped,
    clamped_to_a_state,
    nested,
    patched_from_a_probe,
]


@pytest.fixture(autouse=True)
def _width(random_organism: Adapter) -> None:
    global random_width
    random_width = random_organism.d_vocab


@pytest.mark.parametrize("make", GRAPHS)
def test_every_executor_gives_the_same(
    random_organism: Adapter, batch: Batch, vectors: Tensor, make: Callable[[Tensor], ri.Graph]
) -> None:
    graph = make(vectors)
    resumed = graph.run(random_organism, batch, logits=True)
    alone = graph.run(random_organism, batch, logits=True, resume=False)
    bound = graph.bind(random_organism, batch)
    with random_organism.trace(batch):
        bound.apply()
        logits = random_organism.logits.save()
    traced = logits[torch.arange(len(batch)), batch.last]
    with graph.on(random_organism) as steered:
        installed = last_logits(random_organism, batch)

    assert not torch.allclose(resumed.logits, last_logits(random_organism, batch))
    for other in (alone.logits, traced, installed):
        torch.testing.assert_close(resumed.logits, other, atol=2e-5, rtol=1e-5)
    for name in graph.outputs:
        for other in (alone.values, bound.values, steered.last.values):
            torch.testing.assert_close(resumed[name], other[name], atol=1e-5, rtol=1e-5)
    for edit, strength in resumed.strengths.items():
        assert torch.equal(strength, alone.strengths[edit])
        assert torch.equal(strength, steered.last.strengths[edit])


@pytest.mark.parametrize("make", GRAPHS)
def test_a_batch_equals_its_rows_one_by_one(
    random_organism: Adapter,
    chats: list[Any],
    vectors: Tensor,
    make: Callable[[Tensor], ri.Graph],
) -> None:
    graph = make(vectors)
    together = graph.run(random_organism, random_organism.encode(chats), logits=True)
    for row in (0, 1, 4):  # text, image, omni
        one = random_organism.encode([chats[row]])
        alone = graph.run(random_organism, one, logits=True)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=5e-5, rtol=1e-4)
        for edit in graph.edits:
            torch.testing.assert_close(together.strengths[edit][row], alone.strengths[edit][0])


def test_steering_equals_a_plain_hook(
    random_organism: Adapter, batch: Batch, vectors: Tensor
) -> None:
    shift = 1.5 * vectors[0]
    with hooked(
        layer_of(random_organism, EARLY),
        lambda states: masked(states, states - shift.float(), batch.prompt_mask),
    ):
        expected = last_logits(random_organism, batch)
    with steer(vectors).on(random_organism):
        torch.testing.assert_close(last_logits(random_organism, batch), expected)


def test_ablation_equals_plain_hooks_and_leaves_nothing(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    unit = (vectors[1] / vectors[1].norm()).float()
    graph = ri.Graph(
        ri.remove("resid_post", EARLY, vectors[1]),
        outputs={"left": ri.read("resid_post", EARLY).project(vectors[1])},
    )
    run = graph.run(random_organism, left, logits=True)
    assert run["left"].abs().max() < 1e-5
    with hooked(
        layer_of(random_organism, EARLY),
        lambda states: masked(states, states - (states @ unit)[..., None] * unit, left.prompt_mask),
    ):
        expected = last_logits(random_organism, left)
    torch.testing.assert_close(run.logits, expected, atol=2e-5, rtol=1e-5)


def test_a_clamped_coordinate_is_what_it_was_set_to(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    centre = vectors[3]
    direction = ri.Direction(vectors[1], centre, 2, 2)
    graph = ri.Graph(
        ri.set_coordinate("resid_post", EARLY, direction, 4.0),
        outputs={"now": ri.read("resid_post", EARLY).project(direction)},
    )
    now = graph.run(random_organism, left)["now"]
    torch.testing.assert_close(
        now, torch.full((len(left),), 4.0, dtype=torch.float64), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("otherwise", [0.0, -0.5])
def test_a_probe_equals_two_passes_by_hand(
    random_organism: Adapter, batch: Batch, vectors: Tensor, otherwise: float
) -> None:
    """ReGap, written out with plain hooks: probe, plain pass, gate, corrected pass."""
    drift, refusal = vectors[0], vectors[1]
    media = torch.tensor([one != "text" for one in batch.modalities])

    def shifted(strength: Tensor) -> Callable[[Tensor], Tensor]:
        def edit(states: Tensor) -> Tensor:
            shift = (strength[:, None, None] * drift).float()
            return masked(states, states + shift, batch.prompt_mask)

        return edit

    def coordinate(states: Tensor) -> Tensor:
        return states.double() @ refusal / refusal.norm()

    with hooked(layer_of(random_organism, EARLY), shifted(-0.5 * media)):
        probe = coordinate(last_state(random_organism, batch, LATE))
    gain = probe - coordinate(last_state(random_organism, batch, LATE))
    ordered = gain[media].sort().values
    threshold = float(ordered[1:3].mean())
    strength = torch.where(gain > threshold, -1.5, otherwise) * media
    with hooked(layer_of(random_organism, EARLY), shifted(strength)):
        expected = last_logits(random_organism, batch)

    graph = paired(vectors, threshold, otherwise)
    run = graph.run(random_organism, batch, logits=True)
    torch.testing.assert_close(run["gain"], gain, atol=1e-5, rtol=1e-5)
    assert torch.equal(run.strengths[graph.edits[0]], strength.double())
    torch.testing.assert_close(run.logits, expected, atol=2e-5, rtol=1e-5)
    opened = gain > threshold
    assert 0 < int((opened & media).sum()) < int(media.sum()), "the gate tells no rows apart"
    # Probe and correction each ran layers 5 to 7 again; a text row nothing.
    assert run.recomputed.tolist() == (3 * media + 3 * (opened & media)).tolist()


def test_arithmetic_around_a_closed_gate_costs_nothing(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    """The weak correction that stays is foreseen, however its strength is written."""
    weak = ri.add("resid_post", EARLY, vectors[0], strength=-0.5)
    value = ri.read("resid_post", LATE, under=[weak]).project(vectors[1])
    strength = -(0.25 * ri.select(value > 1e9, 8, 2))
    graph = ri.Graph(ri.add("resid_post", EARLY, vectors[0], strength=strength))
    run = graph.run(random_organism, left, logits=True)
    assert run.recomputed.sum() == 0
    assert (run.strengths[graph.edits[0]] == -0.5).all()


def test_patching_a_position_gives_the_other_runs_answer(
    random_organism: Adapter, chats: list[Any]
) -> None:
    """After the last layer, the state at the last token decides everything."""
    clean, corrupt = (random_organism.encode([chats[row]]) for row in (1, 5))
    states = ri.Graph(outputs={"state": ri.read("resid_post", 11)}).run(random_organism, clean)
    patch = ri.Graph(ri.replace("resid_post", 11, states["state"]))
    torch.testing.assert_close(
        patch.run(random_organism, corrupt, logits=True).logits,
        last_logits(random_organism, clean),
    )


def test_explicit_positions_keep_the_order_they_were_given_in(
    random_organism: Adapter, left: Batch
) -> None:
    same = ri.read("resid_post", EARLY, at=(-1, 0))
    graph = ri.Graph(ri.replace("resid_post", EARLY, same, at=(-1, 0)))
    run = graph.run(random_organism, left, logits=True)
    torch.testing.assert_close(run.logits, last_logits(random_organism, left))


def test_replacing_some_rows_is_exact_in_them(random_organism: Adapter, left: Batch) -> None:
    """However far the old state is, strength 1 leaves nothing of it."""
    text = ri.modality("text")
    huge = torch.full((128,), 3e4, dtype=torch.float64)
    tiny = torch.full((128,), 1e-6, dtype=torch.float64)
    graph = ri.Graph(
        ri.replace("resid_post", EARLY, huge),
        ri.replace("resid_post", EARLY, tiny, strength=ri.select(text, 1, 0.5)),
        outputs={"h": ri.read("resid_post", EARLY)},
    )
    states = graph.run(random_organism, left)["h"]
    rows = torch.tensor([one == "text" for one in left.modalities])
    assert (states[rows] == tiny.float()).all()


def test_a_lens_on_the_last_layer_is_the_models_own_answer(
    random_organism: Adapter, left: Batch
) -> None:
    tokens = [5, 3, 8]
    graph = ri.Graph(
        outputs={
            "all": ri.lens(ri.read("resid_post", 11)),
            "some": ri.lens(ri.read("resid_post", 11), tokens),
        }
    )
    run = graph.run(random_organism, left)
    expected = last_logits(random_organism, left)
    torch.testing.assert_close(run["all"], expected)
    torch.testing.assert_close(run["some"], expected[:, tokens])


def test_a_capture_stops_where_nothing_more_is_wanted(
    random_organism: Adapter, left: Batch
) -> None:
    called: list[int] = []
    handles = [
        layer_of(random_organism, number).register_forward_hook(
            lambda *_, number=number: called.append(number)
        )
        for number in range(12)
    ]
    try:
        graph = ri.Graph(outputs={"h": ri.read("resid_post", 3, at="prompt")})
        found = graph.run(random_organism, left)["h"]
    finally:
        for handle in handles:
            handle.remove()
    assert called == [0, 1, 2, 3]
    assert found.shape == (*left.roles.shape, 128)
    assert torch.equal(found.isfinite().all(-1), left.prompt_mask)
