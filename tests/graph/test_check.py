"""What cannot run is refused before anything is computed, and the error tells the mend."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import regap_interp as ri
from model_adapters import Adapter, Batch
from regap_interp.directions import Origin

V = torch.ones(128, dtype=torch.float64)


def read(layer: int = 3, **options: Any) -> Any:
    return ri.read("resid_post", layer, **options)


def add(**options: Any) -> ri.Graph:
    return ri.Graph(ri.add("resid_post", 3, V, **options))


def out(node: ri.Node) -> ri.Graph:
    return ri.Graph(outputs={"x": node})


def elsewhere(model: str, site: str = "resid_post", layer: int = 3) -> ri.Direction:
    return ri.Direction(V, V, 2, 2, Origin(model, site, layer))


WRONG: list[tuple[Callable[[], ri.Graph], str]] = [
    (lambda: out(ri.read("resid_past", 3)), "read resid_past.*no site 'resid_past'; there are"),
    (lambda: out(ri.read("resid_post")), "needs a layer, 0 to 11"),
    (lambda: out(ri.read("embed", 3)), "embed has no layers"),
    (lambda: out(read(12)), r"read resid_post\[12\].*layers 0 to 11"),
    (lambda: out(read(-1)), "the last is 11"),
    (lambda: out(read(head=1)), "resid_post has no heads"),
    (lambda: out(ri.read("z", 3, head=4)), "heads 0 to 3"),
    (lambda: out(read(at="picture")), "no position rule 'picture'"),
    (lambda: out(read(at=[2, 2])), "different whole numbers"),
    (lambda: out(read(at=ri.Steps(0))), "steps count from 1"),
    (lambda: out(read(at="image", phase="decode")), "one new token"),
    (lambda: out(read(under=[], phase="decode")), "ends with the prefill"),
    (lambda: out(read().mean()), "no positions to take the mean over"),
    (lambda: out(read().project(torch.ones(64))), r"shape \(64,\); both must be of this model"),
    (lambda: out(read().project(torch.zeros(128))), "a direction that is zero"),
    (lambda: out(read() + ri.constant(torch.ones(64))), "different widths"),
    (lambda: out(read() > 2), "a gate needs one number a row"),
    (lambda: out(read(at="prompt").project(V) > 2), "take the mean of positions"),
    (
        lambda: out(read(at="prompt").project(V) * ri.constant(V)),
        "take the mean of the numbers over positions",
    ),
    (
        lambda: ri.Graph(ri.replace("resid_post", 3, read(at="prompt"), at="prompt", phase="both")),
        "a pass of decoding holds one",
    ),
    (lambda: out(~read().project(V)), "compare it with a threshold"),
    (lambda: out((read().project(V) > 1) + 1), "use select"),
    (lambda: out(ri.lens(ri.read("z", 3, head=0))), "states of the stream"),
    (lambda: out(ri.lens(read(), [100000])), "no tokens"),
    (lambda: out(ri.modality("smell")), "no modality 'smell'"),
    (lambda: out(ri.constant(torch.ones(128, dtype=torch.long))), "expected floating point"),
    (lambda: out(ri.constant(V * torch.nan)), "not finite"),
    (lambda: ri.Graph(ri.add("resid_post", 3, torch.ones(64))), "the site is 128 wide"),
    (lambda: ri.Graph(ri.add("z", 3, torch.ones(32))), "say which head"),
    (lambda: ri.Graph(ri.remove("resid_post", 3, torch.zeros(128))), "direction is zero"),
    (lambda: add(strength=read()), "expected one number a row"),
    (lambda: add(strength=ri.modality("text")), "expected one number a row"),
    (lambda: add(at="image", phase="both"), "does not name"),
    (lambda: add(phase="later"), 'phase is "prefill", "decode" or "both"'),
    (lambda: add(strength=read(7).project(V)), r"resid_post\[7\] comes later.*under=\(\)"),
    (lambda: add(strength=read(2, at=ri.Steps()).project(V)), "edits of decoding only"),
    (lambda: ri.Graph(ri.add("resid_post", 3, elsewhere("another"))), "made on another model"),
    (lambda: out(read(under=[ri.add("resid_post", 2, V, phase="decode")])), "ends with the pre"),
    (
        lambda: out(read(under=[ri.add("resid_post", 2, V, strength=read(1).project(V))])),
        "say in which pass",
    ),
]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(("make", "message"), WRONG)
def test_graphs_that_cannot_run_are_refused(
    random_organism: Adapter, make: Callable[[], ri.Graph], message: str
) -> None:
    with pytest.raises(ri.GraphError, match=message):
        make().check(random_organism)


def test_nothing_runs_before_the_check(random_organism: Adapter, left: Batch) -> None:
    calls: list[int] = []
    handle = random_organism.module.register_forward_pre_hook(lambda *_: calls.append(1))
    graph = out(read(12))
    try:
        for attempt in (graph.run, graph.bind):
            with pytest.raises(ri.GraphError):
                attempt(random_organism, left)
        with pytest.raises(ri.GraphError), graph.on(random_organism):
            pass
    finally:
        handle.remove()
    assert not calls


@pytest.mark.parametrize(("site", "layer"), [("resid_post", 4), ("resid_pre", 3)])
def test_a_direction_of_another_place_is_refused(
    random_organism: Adapter, site: str, layer: int
) -> None:
    direction = elsewhere(random_organism.fingerprint, site, layer)
    for graph in (ri.Graph(ri.add("resid_post", 3, direction)), out(read().project(direction))):
        with pytest.raises(ri.GraphError, match=r"used at resid_post\[3\].*direction.vector"):
            graph.check(random_organism)
    ri.Graph(ri.add("resid_post", 3, direction.vector)).check(random_organism)
    ri.Graph(ri.add(site, layer, direction)).check(random_organism)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: out(read(at="video").mean()), "no row of the batch has such positions"),
        (lambda: add(at=[0, 400]), "row 0 has .* prompt positions"),
        (lambda: out(read() - ri.constant(torch.ones(3, 128))), "holds 3 rows, the batch 2"),
    ],
)
def test_graphs_that_cannot_run_on_a_batch_are_refused(
    random_organism: Adapter, chats: list[Any], make: Callable[[], ri.Graph], message: str
) -> None:
    batch = random_organism.encode([chats[0], chats[1]])
    with pytest.raises(ri.GraphError, match=message):
        make().check(random_organism, batch)


def test_a_strength_that_is_no_number_is_refused_by_row(
    random_organism: Adapter, left: Batch
) -> None:
    """A text row has no image positions: their mean is NaN, and nobody said what then."""
    mean = read(2, at="image").mean().project(V)
    with pytest.raises(ri.GraphError, match=r"not a finite number in rows \[0, 2, 3, 5\]"):
        add(strength=mean).run(random_organism, left, logits=True)
    gated = add(strength=ri.select(ri.modality("image") | ri.modality("omni"), mean, 0))
    strength = gated.run(random_organism, left, logits=True).strengths[gated.edits[0]]
    assert (strength != 0).tolist() == [False, True, False, False, True, False]


@pytest.mark.usefixtures("as_users_run_it")
def test_nodes_have_no_truth_value() -> None:
    gate = read().project(V) > 1
    with pytest.raises(TypeError, match="combine gates with"):
        bool(gate)
    with pytest.raises(TypeError, match="wrap a tensor"):
        _ = read() + V  # type: ignore[operator]
    for wrong in (lambda: gate & True, lambda: ri.select(read() == 0, 1, 0)):
        with pytest.raises(TypeError, match="`==` is none"):
            wrong()
    mixed: Any = ["image", 3]
    with pytest.raises(TypeError, match="integer"):
        read(at=mixed)
    with pytest.raises(TypeError, match="a list of edits"):
        read(under=ri.add("resid_post", 2, V))
    with pytest.raises(ri.GraphError, match="made of edits"):
        ri.Graph(gate)  # type: ignore[arg-type]


@pytest.mark.usefixtures("as_users_run_it")
def test_numbers_of_numpy_and_torch_are_numbers(random_organism: Adapter) -> None:
    strength: Any = torch.tensor(0.5)
    where: Any = np.int64(3)
    edit = ri.add("resid_post", where, V, strength=strength, at=np.int64(-1))
    ri.Graph(edit).check(random_organism)
    assert (edit.layer, edit.at) == (3, (-1,))


def test_states_of_other_positions_are_refused(random_organism: Adapter, left: Batch) -> None:
    """They would be NaN where nothing was read."""
    image = ri.read("resid_post", 3, at="image")
    for graph, message in (
        (ri.Graph(ri.replace("resid_post", 3, image, at="prompt")), "read at other positions"),
        (out((image - ri.read("resid_post", 3, at="text")).mean()), "mean of each first"),
    ):
        with pytest.raises(ri.GraphError, match=message):
            graph.run(random_organism, left, logits=True)


def test_two_graphs_join_unless_outputs_are_named_alike() -> None:
    both = add() + out(read())
    assert len(both.edits) == 1 and both.outputs.keys() == {"x"}
    with pytest.raises(ri.GraphError, match="outputs named x"):
        _ = both + out(read())
