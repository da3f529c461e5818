"""Captured states against transformers' own `output_hidden_states`."""

import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from model_adapters import Adapter, Batch
from model_adapters.organism.world import draw_samples
from regap_interp import (
    Graph,
    _bucketed,
    add,
    last_residuals,
    random_orthogonal,
    read,
    refusal_direction,
    select,
)
from regap_interp.capture import capture

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


def shifted(vector: Tensor, strength: float) -> Graph:
    return Graph(add("resid_post", 3, vector, strength=strength))


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


SITES: Any = [
    ("resid_mid", 1),
    ("embed", None),
    ("attn_out", 4),
    ("resid_post", 1),
    ("resid_pre", 4),
    ("mlp_out", 0),
    ("final_norm", None),
]


def chats_with_media() -> list[Any]:
    """Text, image, audio, video, and image with audio."""
    return [
        draw_samples("direction", setting, 1, seed=0)[0].messages
        for setting in ("text", "image", "audio", "video", "omni")
    ]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_site_is_what_a_trace_sees(random_organism: Adapter, padding_side: Any) -> None:
    batch = random_organism.encode(chats_with_media(), padding_side=padding_side)
    found = capture(random_organism, [batch], sites=SITES)
    rows = torch.arange(len(batch))
    for number, (site, layer) in enumerate(SITES):
        with random_organism.trace(batch):
            value = getattr(random_organism, site)
            seen = (value if layer is None else value[layer])[rows, batch.last].save()
        assert torch.equal(found[number], seen.double()), (site, layer)


def test_heads_lie_side_by_side_and_add_up_to_the_attention_output(
    random_organism: Adapter,
) -> None:
    heads = capture(random_organism, CHATS, sites=[("result", 2)])[0]
    summed = heads.unflatten(-1, (random_organism.n_heads, -1)).sum(dim=1)
    assert_close(summed, capture(random_organism, CHATS, sites=[("attn_out", 2)])[0])
    z = capture(random_organism, CHATS, sites=[("z", 2)])[0]
    assert z.shape[1] == random_organism.n_heads * random_organism.d_head


@pytest.mark.parametrize("at", ["prompt", "text", "image", (0, 2), (-3,), (1, -1)])
@pytest.mark.parametrize("batch_size", [2, None])
def test_positions_are_averaged_within_each_request(
    random_organism: Adapter, at: Any, batch_size: int | None
) -> None:
    chats = [chats_with_media()[i] for i in (1, 4, 1)]  # all have an image
    found = capture(random_organism, chats, sites=[("resid_post", 5)], at=at, batch_size=batch_size)
    for number, chat in enumerate(chats):
        alone = random_organism.encode([chat])
        with torch.no_grad():
            out = random_organism.module(**alone.inputs, output_hidden_states=True)
        states = out.hidden_states[6][0].double()
        if isinstance(at, tuple):
            states = states[list(at)]
        elif at != "prompt":
            states = states[alone.mask(at)[0]]
        assert_close(found[0, number], states.mean(dim=0))


def test_requests_of_similar_length_run_together_and_come_back_in_order(
    random_organism: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[tuple[int, ...]] = []
    describe = Adapter.describe

    def note(self: Adapter, **inputs: Any) -> Batch:
        lengths.append(tuple(inputs["attention_mask"].sum(dim=1).tolist()))
        return describe(self, **inputs)

    monkeypatch.setattr(Adapter, "describe", note)
    chats = [*CHATS, *chats_with_media()]
    found = last_residuals(random_organism, chats, layers=[4], batch_size=5)
    assert [len(one) for one in lengths] == [5, 5]
    assert min(lengths[0]) >= max(lengths[1])
    alone = last_residuals(random_organism, chats, layers=[4], batch_size=1)
    assert_close(found, alone)


def test_requests_may_come_from_a_generator(random_organism: Adapter) -> None:
    made: Any = (chat for chat in CHATS)
    assert_close(last_residuals(random_organism, made, layers=[4]), reference(random_organism, [4]))


def test_captures_of_several_threads_wait_for_each_other(random_organism: Adapter) -> None:
    layers = [2, 5, 8]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(4):
                last_residuals(random_organism, CHATS, layers=[layers[number]], batch_size=1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_takes_effect_between_passes_and_leaves_no_hook(random_organism: Adapter) -> None:
    module = random_organism.module
    ended: list[str] = []

    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        ended.append("held back")

    handle = module.register_forward_pre_hook(interrupt)
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in module.modules()]
    before = [(list(a), list(b)) for a, b in hooks]
    try:
        with pytest.raises(KeyboardInterrupt):
            last_residuals(random_organism, CHATS, layers=[4], batch_size=2)
        assert ended == ["held back"]
        assert [(list(a), list(b)) for a, b in hooks] == before
    finally:
        handle.remove()


def test_edits_of_decoding_are_left_out_of_a_capture(random_organism: Adapter) -> None:
    vector = torch.linspace(-1, 1, random_organism.d_model, dtype=torch.float64)
    gate = read("resid_post", 1, phase="decode").project(vector) > 0
    graph = Graph(add("resid_post", 2, vector, phase="decode", strength=select(gate, 1.0, 0.0)))
    found = last_residuals(random_organism, CHATS, layers=[4], graph=graph)
    assert torch.equal(found, last_residuals(random_organism, CHATS, layers=[4]))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_pass_that_runs_out_of_memory_is_tried_again_with_half(
    random_organism: Adapter, batch_size: int | None, error: Exception
) -> None:
    tried: list[int] = []

    def refuse_many(module: Any, args: Any, kwargs: Any) -> None:
        tried.append(len(kwargs["input_ids"]))
        if tried[-1] > 2:
            raise error

    handle = random_organism.module.register_forward_pre_hook(refuse_many, with_kwargs=True)
    try:
        found = last_residuals(random_organism, CHATS, layers=[4], batch_size=batch_size)
    finally:
        handle.remove()
    assert tried == [5, 2, 2, 1]
    assert_close(found, reference(random_organism, [4]))


def test_other_errors_and_single_requests_without_room_come_through(
    random_organism: Adapter,
) -> None:
    def refuse(module: Any, args: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory, out of memory")

    handle = random_organism.module.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(RuntimeError, match="out of memory") as raised:
            last_residuals(random_organism, CHATS, layers=[4])
    finally:
        handle.remove()
    assert "positions does not fit by itself" in raised.value.__notes__[0]


def test_a_gpu_takes_more_at_a_time_as_long_as_all_goes_well() -> None:
    size = _bucketed._Size(None, grows=True)
    batch = Batch({}, torch.ones(1, 512, dtype=torch.long), ((),), ((),), ((),), "left")
    waiting = [_bucketed.Encoded(i, "", batch) for i in range(64)]
    taken = []
    for _ in range(4):
        now = size.cut(waiting)
        taken.append(len(now))
        size.passed(now)
    size.halve(size.cut(waiting))
    taken.append(len(size.cut(waiting)))
    size.passed(size.cut(waiting))
    taken.append(len(size.cut(waiting)))
    assert taken == [2, 4, 8, 16, 16, 16]


@pytest.mark.parametrize("sites", [[("resid_post", 0), ("resid_mid", 3)], [("resid_post", 3)]])
def test_neither_later_layers_nor_the_head_run(random_organism: Adapter, sites: Any) -> None:
    ran: list[str] = []
    module = random_organism.module
    parts = {str(i): layer for i, layer in enumerate(module.model.language_model.layers)}
    parts |= {"norm": module.model.language_model.norm, "head": module.lm_head}
    parts |= {"mlp 3": module.model.language_model.layers[3].mlp}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, part in parts.items()
    ]
    try:
        capture(random_organism, CHATS[:1], sites=sites)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["0", "1", "2", "3"] + ["mlp 3"] * (sites == [("resid_post", 3)])


def test_nothing_of_a_capture_stays_on_the_model(random_organism: Adapter) -> None:
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in random_organism.module.modules()]
    before = [(list(a), list(b)) for a, b in hooks]
    capture(random_organism, CHATS, sites=SITES)
    with pytest.raises(ValueError, match="item 1 has no image positions"):
        capture(random_organism, [chats_with_media()[1], CHATS[0]], sites=SITES, at="image")
    assert [(list(a), list(b)) for a, b in hooks] == before


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
    steered = last_residuals(random_organism, CHATS, layers=layers, graph=shifted(vector, -2.0))
    assert torch.equal(steered[0], plain[0])
    assert_close(steered[1], plain[1] - 2 * vector)
    assert not torch.allclose(steered[2], plain[2] - 2 * vector, atol=1e-3)


def test_captures_see_the_edits_of_a_graph_that_is_installed(random_organism: Adapter) -> None:
    vector = torch.linspace(-1, 1, random_organism.d_model, dtype=torch.float64)
    steered = last_residuals(random_organism, CHATS, layers=[3, 8], graph=shifted(vector, -2.0))
    with shifted(vector, -2.0).on(random_organism):
        found = last_residuals(random_organism, CHATS, layers=[3, 8])
    assert_close(found, steered)


@pytest.mark.parametrize("installed", [True, False])
def test_captures_wait_for_gates_of_later_layers(random_organism: Adapter, installed: bool) -> None:
    """A later layer decides what the captured layer holds."""
    vector = torch.linspace(-1, 1, random_organism.d_model, dtype=torch.float64)
    later = read("resid_post", 8, under=[]).project(vector)
    values = Graph(outputs={"later": later}).run(random_organism, random_organism.encode(CHATS))
    cut = float(values["later"].median())
    opened = values["later"] > cut
    graph = Graph(add("resid_post", 3, vector, strength=select(later > cut, -2.0, 0)))
    plain = last_residuals(random_organism, CHATS, layers=[3])[0]
    if installed:
        with graph.on(random_organism):
            found = last_residuals(random_organism, CHATS, layers=[3])[0]
    else:
        found = last_residuals(random_organism, CHATS, layers=[3], graph=graph)[0]
    assert 0 < int(opened.sum()) < len(CHATS)
    assert_close(found, plain - 2 * vector * opened[:, None])


def test_orthogonal_steering_keeps_the_refusal_coordinate_at_its_layer(
    random_organism: Adapter,
) -> None:
    plain = last_residuals(random_organism, CHATS, layers=[3])[0]
    refusal = refusal_direction(plain[:2], plain[2:])
    vector = random_orthogonal(1, like=refusal.vector, against=[refusal.vector])[0]
    steered = last_residuals(random_organism, CHATS, layers=[3], graph=shifted(vector, -1.0))[0]
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


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": []}, "different .site, layer. pairs"),
        ({"sites": [("resid_post", 1)] * 2}, "different .site, layer. pairs"),
        ({"sites": [("resid", 1)]}, "no site 'resid'; the sites are resid_pre"),
        ({"sites": [("resid_post", None)]}, "have no layer, others do"),
        ({"sites": [("embed", 0)]}, "have no layer, others do"),
        ({"sites": [("resid_post", -1)]}, "layers count from 0"),
        ({"sites": [("resid_post", 12)]}, "has the layers 0 to 11"),
        ({"sites": ["resid_post"]}, "'resid_post' is no pair"),
        ({"sites": [("resid_post", 1)], "at": (-1, -1)}, "each once"),
        ({"sites": [("resid_post", 1), ("logits", None)]}, r"widths \[111, 128\]"),
        ({"sites": [("resid_post", 1)], "at": "middle"}, "at is 'middle'; give one of last"),
        ({"sites": [("resid_post", 1)], "at": ()}, "or a tuple of indices"),
        ({"sites": [("resid_post", 1)], "at": (99,)}, "item 0 has .* need 100"),
        ({"sites": [("resid_post", 1)], "at": "audio"}, "item 0 has no audio positions"),
    ],
)
def test_captures_that_cannot_be_had_are_refused(
    random_organism: Adapter, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        capture(random_organism, CHATS[:1], **options)


def test_a_capture_inside_a_trace_is_refused(random_organism: Adapter) -> None:
    batch = random_organism.encode(CHATS[:1])
    with pytest.raises(ValueError, match="outside of any trace"), random_organism.trace(batch):
        last_residuals(random_organism, CHATS, layers=[0])


def test_a_request_the_model_cannot_take_is_named(random_organism: Adapter) -> None:
    bad = [{"role": "user", "content": ""}]
    with pytest.raises(ValueError, match="item 2: "):
        last_residuals(random_organism, [*CHATS[:2], bad], layers=[0])


def test_a_bar_is_drawn_on_request_only(
    random_organism: Adapter, capsys: pytest.CaptureFixture[str]
) -> None:
    last_residuals(random_organism, CHATS, layers=[0])
    assert capsys.readouterr().err == ""
    last_residuals(random_organism, CHATS, layers=[0], progress=True)
    assert "5/5" in capsys.readouterr().err
