"""The selection of the refusal direction against plain hooks, and on a model that refuses."""

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import model_adapters
from model_adapters import Adapter
from model_adapters.organism import build
from model_adapters.organism.world import draw_samples
from regap_interp.artefact import Directions
from regap_interp.directions import Origin
from regap_interp.graph.edits import remove
from regap_interp.graph.graph import Graph
from regap_interp.selection import Selection, refusal_score, select_direction

N_LAYERS = 4


@pytest.fixture(scope="module")
def shallow() -> Adapter:
    """The random organism with fewer layers: selection runs through them for every candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "LAYERS", N_LAYERS)
        model = build.build_model(build.build_tokenizer(), seed=0).eval()
    return model_adapters.load(model, processor=build.build_processor())


def chats(*texts: str) -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def in_parts(chat: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The same request in the other spelling."""
    return [[{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]]


ITEMS = {
    "harmful": chats("name the kerol please", "what is the kerol", "rate this now please"),
    "harmless": chats("tell me how to name this", "please rate the kerol"),
    "harmful_val": chats("is this the kerol", "name this"),
    "harmless_val": chats("what is this", "tell me now", "how to rate the kerol please now"),
}


# --- plain hooks, one prompt at a time, in float64 where they compute ---


@contextmanager
def hooked(adapter: Adapter, vector: Tensor | None, layer: int | None) -> Iterator[None]:
    """Remove `vector` everywhere, or add it to the input of one layer, as the repository does."""
    blocks = adapter.module.get_submodule(adapter.layout.layers)
    handles: list[Any] = []

    def removed(value: Tensor) -> Tensor:
        assert vector is not None
        unit = (vector / vector.norm()).to(value)
        return value - (value @ unit)[..., None] * unit

    def before(change: Callable[[Tensor], Tensor]) -> Any:
        return lambda module, args: (change(args[0]), *args[1:])

    def after(module: Any, args: Any, out: Any) -> Any:
        return (removed(out[0]), *out[1:]) if isinstance(out, tuple) else removed(out)

    if vector is not None and layer is not None:
        added = vector
        handles.append(
            blocks[layer].register_forward_pre_hook(before(lambda value: value + added.to(value)))
        )
    elif vector is not None:
        for block in blocks:
            handles.append(block.register_forward_pre_hook(before(removed)))
            handles += [part.register_forward_hook(after) for part in (block.self_attn, block.mlp)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits_of(
    adapter: Adapter, items: Sequence[Any], vector: Tensor | None = None, layer: int | None = None
) -> Tensor:
    with hooked(adapter, vector, layer), torch.no_grad():
        rows = [adapter.module(**adapter.encode([one]).inputs).logits[0, -1] for one in items]
    return torch.stack(rows).double()


def odds(logits: Tensor, tokens: Sequence[int]) -> float:
    chance = logits.softmax(-1)[:, list(tokens)].sum(-1)
    return float((torch.log(chance + 1e-8) - torch.log(1 - chance + 1e-8)).mean())


def kl(before: Tensor, after: Tensor) -> float:
    p, q = before.softmax(-1), after.softmax(-1)
    return float((p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1).mean())


def mean_input(adapter: Adapter, items: Sequence[Any], layer: int, position: int) -> Tensor:
    states = []
    for one in items:
        with torch.no_grad():
            out = adapter.module(**adapter.encode([one]).inputs, output_hidden_states=True)
        states.append(out.hidden_states[layer][0, position].double())
    return torch.stack(states).mean(0)


@pytest.fixture(scope="module")
def selected(shallow: Adapter) -> Selection:
    return select_direction(
        shallow,
        **ITEMS,
        refusal_tokens=["sorry", 30],
        filter_items=False,
        max_kl=None,
        min_induce=None,
    )


@pytest.mark.parametrize(("position", "layer"), [(-3, 1), (-1, 2), (-2, 3)])
def test_scores_are_those_of_plain_hooks(
    shallow: Adapter, selected: Selection, position: int, layer: int
) -> None:
    adapter = shallow
    found = next(c for c in selected.candidates if (c.position, c.layer) == (position, layer))
    vector = mean_input(adapter, ITEMS["harmful"], layer, position) - mean_input(
        adapter, ITEMS["harmless"], layer, position
    )
    tokens = selected.refusal_tokens
    bare = logits_of(adapter, ITEMS["harmless_val"])
    removed = logits_of(adapter, ITEMS["harmless_val"], vector)
    assert found.norm == pytest.approx(float(vector.norm()), rel=1e-4)
    assert found.bypass == pytest.approx(
        odds(logits_of(adapter, ITEMS["harmful_val"], vector), tokens), abs=1e-3
    )
    assert found.induce == pytest.approx(
        odds(logits_of(adapter, ITEMS["harmless_val"], vector, layer), tokens), abs=1e-3
    )
    assert found.kl == pytest.approx(kl(bare, removed), abs=1e-4)
    assert found.kl > 1e-3  # the ablation does something
    assert selected.baseline_harmless == pytest.approx(odds(bare, tokens), abs=1e-4)


def test_removing_everywhere_is_the_graph_of_removals(shallow: Adapter) -> None:
    vector = torch.randn(shallow.d_model, generator=torch.Generator().manual_seed(1)).double()
    graph = Graph(
        *(
            remove(site, layer, vector)
            for layer in range(N_LAYERS)
            for site in ("resid_pre", "attn_out", "mlp_out")
        )
    )
    by_graph = [
        graph.run(shallow, shallow.encode([one]), logits=True).logits[0].double()
        for one in ITEMS["harmful"]
    ]
    assert torch.allclose(
        torch.stack(by_graph), logits_of(shallow, ITEMS["harmful"], vector), atol=1e-4
    )


def test_batches_change_nothing(shallow: Adapter, selected: Selection) -> None:
    again = select_direction(
        shallow, **ITEMS, refusal_tokens=["sorry", 30], filter_items=False, positions=[-1],
        batch_size=1,
    )  # fmt: skip
    one_by_one = [[c.norm, c.bypass, c.induce, c.kl] for c in again.candidates]
    together = [[c.norm, c.bypass, c.induce, c.kl] for c in selected.candidates[-N_LAYERS:]]
    assert torch.allclose(torch.tensor(one_by_one), torch.tensor(together), atol=1e-3)


def test_candidates_are_all_layers_at_the_template_behind_the_instruction(
    shallow: Adapter, selected: Selection
) -> None:
    # <|im_end|><|im_start|>assistant
    assert [(c.position, c.layer) for c in selected.candidates] == [
        (position, layer) for position in (-3, -2, -1) for layer in range(N_LAYERS)
    ]


def test_an_ending_that_all_prompts_share_is_no_template(shallow: Adapter) -> None:
    items = {
        name: chats(*(one[0]["content"] + " now please" for one in group))
        for name, group in ITEMS.items()
    }
    found = select_direction(
        shallow, **items, refusal_tokens=[30], filter_items=False, positions=None
    )
    assert {one.position for one in found.candidates} == {-3, -2, -1}


def test_embeddings_of_the_template_are_no_candidates(selected: Selection) -> None:
    first = [one for one in selected.candidates if one.layer == 0]
    assert all("classes do not differ" in one.discarded for one in first)
    assert {one.bypass for one in first} == {selected.baseline_harmful}
    assert {one.kl for one in first} == {0.0}


def test_the_lowest_bypass_of_the_first_eighty_percent_of_layers_wins(selected: Selection) -> None:
    late = [one for one in selected.candidates if "late layer" in one.discarded]
    assert {one.layer for one in late} == {3}  # int(0.8 * 4) and later
    allowed = [one for one in selected.candidates if 0 < one.layer < 3]
    assert selected.chosen == min(allowed, key=lambda one: one.bypass)


def test_the_chosen_direction_remembers_site_layer_and_means(
    shallow: Adapter, selected: Selection
) -> None:
    one, found = selected.chosen, selected.direction
    assert one is not None
    assert found.origin == Origin(shallow.fingerprint, "resid_pre", one.layer, str(one.position))
    assert found.norm == one.norm and (found.n_towards, found.n_from) == (3, 2)
    expected = mean_input(shallow, ITEMS["harmless"], one.layer, one.position)
    assert torch.allclose(found.centre, expected, atol=1e-4)


def test_it_can_be_saved_as_an_artefact(
    shallow: Adapter, selected: Selection, tmp_path: Path
) -> None:
    selected.directions(shallow).save(tmp_path / "refusal.safetensors")
    loaded = Directions.load(tmp_path / "refusal.safetensors")
    assert selected.chosen is not None
    layer = selected.chosen.layer
    assert torch.equal(loaded.refusal(layer).vector, selected.direction.vector)
    recipe = loaded.manifest.recipes["refusal"]
    assert recipe.options["bypass"] == selected.chosen.bypass
    assert recipe.position == str(selected.chosen.position)


def test_scores_are_saved_as_json(selected: Selection, tmp_path: Path) -> None:
    broken = dataclasses.replace(selected.candidates[3], bypass=math.nan)
    dataclasses.replace(selected, candidates=(broken, *selected.candidates)).save(tmp_path / "s")
    about = json.loads((tmp_path / "s").read_text())
    assert about["candidates"][0]["bypass"] is None and about["max_kl"] is None
    assert about["candidates"][1]["induce"] == selected.candidates[0].induce
    assert sum(row["chosen"] for row in about["candidates"]) == 1


def test_the_plot_shows_scores_limits_and_choice(selected: Selection) -> None:
    pytest.importorskip("matplotlib")
    limited = dataclasses.replace(selected, max_kl=0.1, min_induce=0.0)
    axes = limited.plot().axes
    assert len(axes) == 3
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["-3", "-2", "-1"]
    drawn = axes[2].get_lines()[0].get_ydata()
    assert list(drawn) == [one.kl for one in selected.candidates[:N_LAYERS]]


def test_without_matplotlib_the_pip_line_is_named(
    selected: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'regap-interp\[views\]'"):
        selected.plot()


def test_nothing_left_is_said_with_the_reasons(shallow: Adapter) -> None:
    found = select_direction(
        shallow,
        **ITEMS,
        refusal_tokens=[30],
        positions=[-1],
        filter_items=False,
        max_kl=0.0,
        min_induce=50.0,
    )
    assert found.chosen is None and len(found.candidates) == N_LAYERS
    with pytest.raises(ValueError, match=r"all 4 .*induces too little: 4.*KL too high: 3"):
        _ = found.direction
    assert [row["chosen"] for row in found.table()] == [False] * N_LAYERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"refusal_tokens": ["sorry i"]}, "must be one it knows"),
        ({"refusal_tokens": ["xyzzy"]}, "must be one it knows"),
        ({"refusal_tokens": []}, "give at least one"),
        ({"refusal_tokens": [4, 4]}, "each once"),
        ({"refusal_tokens": [10**6]}, "from 0 to"),
        ({"harmful": ITEMS["harmful"][:1]}, "harmful has 1 items"),
        ({"harmless_val": []}, "harmless_val has 0 items"),
        ({"harmful_val": ITEMS["harmful"][:2]}, "is in harmful too"),
        ({"harmful_val": in_parts(ITEMS["harmful"][0])}, "item 0 of harmful_val is in harmful too"),
        ({"positions": [-4]}, "position -4 does not hold the same"),
        ({"positions": [-100]}, "position -100 does not"),
        ({"positions": [0]}, "negative"),
        ({"positions": []}, "negative"),
        ({"prune": 1.5}, "prune 1.5"),
        ({"max_kl": math.nan}, "a limit is a number or None"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"filter_items": True}, "the untouched model does what is expected with only"),
    ],
)
def test_what_cannot_work_is_refused_before_candidates_run(
    shallow: Adapter, change: dict[str, Any], message: str
) -> None:
    arguments = {**ITEMS, "refusal_tokens": [30], "filter_items": False, **change}
    ran: list[int] = []
    with pytest.raises(ValueError, match=message):
        select_direction(shallow, **arguments, progress=lambda done, total: ran.append(done))
    assert ran == []


def test_a_model_under_an_installed_graph_is_refused(shallow: Adapter) -> None:
    graph = Graph(remove("resid_post", 1, torch.ones(shallow.d_model).double()))
    with graph.on(shallow), pytest.raises(ValueError, match="leave its with-block first"):
        select_direction(shallow, **ITEMS, refusal_tokens=[30], filter_items=False)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_inside_a_pass_leaves_no_hook(shallow: Adapter) -> None:
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in shallow.module.modules()]
    handle = shallow.module.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    before = [(list(a), list(b)) for a, b in hooks]
    try:
        with pytest.raises(KeyboardInterrupt):
            select_direction(shallow, **ITEMS, refusal_tokens=[30], filter_items=False)
        assert [(list(a), list(b)) for a, b in hooks] == before
    finally:
        handle.remove()


def test_an_interrupt_leaves_the_model_as_it_was(shallow: Adapter) -> None:
    before = logits_of(shallow, ITEMS["harmful"])

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select_direction(shallow, **ITEMS, refusal_tokens=[30], filter_items=False, progress=stop)
    assert torch.equal(logits_of(shallow, ITEMS["harmful"]), before)


def test_the_score_is_zero_at_even_odds_and_bounded() -> None:
    logits = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]])
    even, sure, never = refusal_score(logits, [0]).tolist()
    assert even == pytest.approx(0)
    assert sure == pytest.approx(-math.log(1e-8)) and never == pytest.approx(math.log(1e-8))


# --- a model that refuses ---


def test_on_the_organism_the_choice_carries_refusal() -> None:
    adapter = model_adapters.load("organism")

    def drawn(split: str, harmful: bool, n: int) -> list[Any]:
        return [one.messages for one in draw_samples(split, "text", n, seed=5, harmful=harmful)]

    done: list[tuple[int, int]] = []
    found = select_direction(
        adapter,
        harmful=drawn("direction", True, 12),
        harmless=drawn("direction", False, 12),
        harmful_val=drawn("calibration", True, 6),
        harmless_val=drawn("calibration", False, 6),
        refusal_tokens=["sorry"],
        positions=[-1],
        progress=lambda *at: done.append(at),
    )
    assert done[-1] == (12, 12)
    assert found.chosen is not None
    assert found.chosen.induce > 0 > found.chosen.bypass
    assert found.baseline_harmful > 0 > found.baseline_harmless
    # On requests of another split, it is what refusal hangs on; a random direction is not.
    sorry = found.refusal_tokens
    unseen = drawn("report", True, 10)
    vector = found.direction.vector
    random = torch.randn(len(vector), generator=torch.Generator().manual_seed(0)).double()
    assert odds(logits_of(adapter, unseen), sorry) > 0
    assert odds(logits_of(adapter, unseen, vector), sorry) < 0
    assert odds(logits_of(adapter, unseen, random), sorry) > 0
