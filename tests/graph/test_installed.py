"""Graphs on the raw model: any loop is steered, nothing stays behind, nothing passes unsteered."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import regap_interp as ri
from model_adapters import Adapter, Batch, SiteError
from tests.graph.conftest import hooked, last_logits, layer_of
from tests.graph.test_executors import masked, paired, steer

NEW = 5


def raw(adapter: Adapter, batch: Batch, **options: Any) -> Tensor:
    """New tokens of the raw model's own generate, as an evaluation harness calls it."""
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    tokens: Tensor = adapter.module.generate(**batch.inputs, **{**settings, **options})
    return tokens[:, batch.roles.shape[1] :]


def n_hooks(adapter: Adapter) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in adapter.module.modules()
    )


def test_a_raw_generate_is_steered_as_by_a_plain_hook(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    shift = (1.5 * vectors[0]).float()
    with hooked(
        layer_of(random_organism, 4),
        lambda states: masked(states, states - shift, left.prompt_mask),
    ):
        expected = raw(random_organism, left)
    with steer(vectors).on(random_organism):
        assert torch.equal(raw(random_organism, left), expected)
    assert not torch.equal(raw(random_organism, left), expected)


@pytest.mark.parametrize("otherwise", [0.0, -0.5])
def test_decoding_goes_on_from_the_corrected_keys_and_values(
    random_organism: Adapter, left: Batch, vectors: Tensor, otherwise: float
) -> None:
    """Rows run again leave the cache as if they had been corrected from the start."""
    graph = paired(vectors, 0.35, otherwise)
    with graph.on(random_organism) as steered:
        resumed = raw(random_organism, left)
        opened = steered.last.strengths[graph.edits[0]]
    media = torch.tensor([one != "text" for one in left.modalities])
    assert len(opened[media].unique()) == 2, "the gate tells no rows apart"

    def corrected(states: Tensor) -> Tensor:
        shift = (opened[:, None, None] * vectors[0]).float()
        return masked(states, states + shift, left.prompt_mask)

    with hooked(layer_of(random_organism, 4), corrected):
        assert torch.equal(resumed, raw(random_organism, left))


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(lambda v: ri.Graph(ri.add("resid_post", 4, v[0], strength=0)), id="zero"),
        pytest.param(lambda v: paired(v, threshold=1e9), id="never opens"),
        pytest.param(lambda v: ri.Graph(outputs={"h": ri.read("resid_post", 4)}), id="reads only"),
        pytest.param(
            lambda v: ri.Graph(
                ri.add("resid_post", 4, v[0], strength=ri.select(ri.modality("video"), 0, 0))
            ),
            id="zero in every row",
        ),
    ],
)
def test_what_changes_nothing_is_the_bare_model_bit_for_bit(
    random_organism: Adapter, left: Batch, vectors: Tensor, graph: Any
) -> None:
    bare, tokens = last_logits(random_organism, left), raw(random_organism, left)
    with graph(vectors).on(random_organism):
        assert torch.equal(last_logits(random_organism, left), bare)
        assert torch.equal(raw(random_organism, left), tokens)


def test_text_rows_keep_their_bits_under_a_drift_correction(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    text = torch.tensor([one == "text" for one in left.modalities])
    bare = last_logits(random_organism, left)
    with paired(vectors, threshold=-1e9).on(random_organism) as steered:
        corrected = last_logits(random_organism, left)
        assert torch.equal(corrected[text], bare[text])
        assert steered.last.recomputed[text].sum() == 0
    assert (corrected[~text] - bare[~text]).abs().amax(1).min() > 0


def test_hooks_go_with_the_block_even_after_an_error(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    before, bare = n_hooks(random_organism), last_logits(random_organism, left)
    with pytest.raises(RuntimeError, match="stop here"), steer(vectors).on(random_organism):
        last_logits(random_organism, left)
        raise RuntimeError("stop here")
    assert n_hooks(random_organism) == before
    assert torch.equal(last_logits(random_organism, left), bare)


def test_an_error_inside_a_pass_leaves_the_model_usable(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    def fail(module: Any, args: Any, output: Any) -> None:
        raise RuntimeError("inside the pass")

    bare = last_logits(random_organism, left)
    with paired(vectors).on(random_organism):
        handle = layer_of(random_organism, 6).register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="inside the pass"):
            last_logits(random_organism, left)
        handle.remove()
        assert not torch.equal(last_logits(random_organism, left), bare)
    assert torch.equal(last_logits(random_organism, left), bare)


def test_nested_graphs_act_as_one(random_organism: Adapter, left: Batch, vectors: Tensor) -> None:
    outer = ri.Graph(
        ri.add("resid_post", 4, vectors[2], strength=0.5),
        outputs={"outer": ri.read("resid_post", 4).project(vectors[2])},
    )
    inner = paired(vectors, 0.35)
    expected = (outer + inner).run(random_organism, left, logits=True)
    with outer.on(random_organism) as first, inner.on(random_organism) as second:
        logits = last_logits(random_organism, left)
        assert first.last.values.keys() == {"outer"}
        assert second.last.values.keys() == {"gain", "later"}
    torch.testing.assert_close(logits, expected.logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(first.last["outer"], expected["outer"])


def test_the_inner_graph_goes_alone(random_organism: Adapter, left: Batch, vectors: Tensor) -> None:
    other = ri.Graph(ri.add("resid_post", 2, vectors[3]))
    with other.on(random_organism):
        alone = last_logits(random_organism, left)
        with steer(vectors).on(random_organism):
            assert not torch.equal(last_logits(random_organism, left), alone)
        assert torch.equal(last_logits(random_organism, left), alone)


def test_no_hook_on_a_layer_lives_in_decoding(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    seen: list[int] = []
    layer = layer_of(random_organism, 4)

    def count(module: Any, args: Any, output: Any) -> None:
        # This hook and, in the prefill, the graph's.
        seen.append(len(layer._forward_hooks))

    with steer(vectors).on(random_organism):
        handle = layer.register_forward_hook(count)
        raw(random_organism, left)
        handle.remove()
    assert seen == [2] + [1] * (NEW - 1)


def test_calls_past_the_models_forward_are_refused(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    ids = left.inputs["input_ids"][:1]
    refused = pytest.raises(SiteError, match="past the model's own forward")
    with steer(vectors).on(random_organism), refused:
        random_organism.module.model.language_model(input_ids=ids)
    random_organism.module.model.language_model(input_ids=ids)


def test_a_prompt_read_before_the_graph_came_is_refused(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    with torch.no_grad():
        cache = random_organism.module(**left.inputs, use_cache=True).past_key_values
    step = {
        "input_ids": left.inputs["input_ids"][:, -1:],
        "attention_mask": torch.ones(len(left), left.roles.shape[1] + 1, dtype=torch.long),
        "past_key_values": cache,
    }
    refused = pytest.raises(SiteError, match="before the graph was installed")
    with steer(vectors).on(random_organism), refused:
        random_organism.module(**step)


@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"prompt_lookup_num_tokens": 4}, {"prefill_chunk_size": 8}]
)
def test_generation_whose_passes_are_no_steps_is_refused(
    random_organism: Adapter, left: Batch, vectors: Tensor, options: dict[str, Any]
) -> None:
    """The answer so far would be edited as a prompt, or a prompt decided in pieces."""
    own = random_organism.module.generate
    refused = pytest.raises(SiteError, match="tell the prompt from the answer")
    with steer(vectors).on(random_organism), refused:
        raw(random_organism, left, **options)
    assert random_organism.module.generate == own


@pytest.mark.parametrize("resume", [True, False])
def test_a_later_turn_on_a_kept_cache_is_corrected_too(
    random_organism: Adapter, left: Batch, vectors: Tensor, resume: bool
) -> None:
    """The second turn's gate sees the second turn, its rows are run again with the first behind."""
    v = vectors
    probe = ri.add("resid_post", 4, v[0], strength=-0.5)
    value = ri.read("resid_post", 7, under=[probe]).project(v[1])
    edit = ri.add("resid_post", 4, v[0], strength=ri.select(value > 0.0, -1.5, -0.5))
    graph = ri.Graph(edit, outputs={"value": value})
    words = left.inputs["input_ids"][:, -4:]
    rows, width = left.roles.shape
    mask = torch.cat([left.inputs["attention_mask"], torch.ones(rows, 4, dtype=torch.long)], dim=1)
    places = (width + torch.arange(4)).expand(3, rows, 4)
    turn = {"input_ids": words, "attention_mask": mask, "position_ids": places}

    def second_turn() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            cache = random_organism.module(**left.inputs, use_cache=True).past_key_values
            output = random_organism.module(**turn, past_key_values=cache, use_cache=True)
        return output.logits[:, -1], cache.layers[6].keys

    with graph.on(random_organism, resume=resume) as steered:
        logits, keys = second_turn()
        strength = steered.last.strengths[edit]
        if resume:
            assert steered.last.recomputed.tolist() == (3 * (strength == -1.5)).tolist()
    assert len(strength.unique()) == 2, "the gate tells no rows apart"

    passes = iter([0, 1])

    def by_hand(states: Tensor) -> Tensor:
        if next(passes) == 1:
            shift = (strength[:, None, None] * v[0]).float()
            return states + shift
        first_turn = steered_first[:, None, None] * v[0]
        return masked(states, states + first_turn.float(), left.prompt_mask)

    first = graph.run(random_organism, left)
    steered_first = first.strengths[edit]
    with hooked(layer_of(random_organism, 4), by_hand):
        expected, expected_keys = second_turn()
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(keys, expected_keys, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("phase", ["decode", "both"])
def test_decoding_is_steered_where_the_graph_says_so(
    random_organism: Adapter, left: Batch, vectors: Tensor, phase: Any
) -> None:
    graph = ri.Graph(ri.add("resid_post", 4, vectors[0], phase=phase))
    shift = vectors[0].float()

    def by_hand(module: Any, args: Any, output: Tensor) -> Tensor:
        if output.shape[1] == 1:
            return output + shift
        moved = masked(output, output + shift, left.prompt_mask)
        return moved if phase == "both" else output

    handle = layer_of(random_organism, 4).register_forward_hook(by_hand)
    expected = raw(random_organism, left)
    handle.remove()
    with graph.on(random_organism):
        assert torch.equal(raw(random_organism, left), expected)
    bound = graph.bind(random_organism, left)
    traced = random_organism.generate(
        left,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        prefill=lambda _: bound.apply(),
        decode=lambda _, step: bound.apply(step),
    )
    assert torch.equal(traced.tokens, expected)


def test_single_steps_are_steered_and_read(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    """Step 1 is the pass over the first new token; its read decides its edit."""
    here = ri.read("resid_post", 4, at=ri.Steps()).project(vectors[1])
    edit = ri.add(
        "resid_post", 4, vectors[0], at=ri.Steps(2, 3), strength=ri.select(here > 0, 9, 0)
    )
    graph = ri.Graph(edit, outputs={"here": here, "first": ri.read("resid_post", 4)})
    with graph.on(random_organism) as steered:
        steered.generate(left, max_new_tokens=NEW, min_new_tokens=NEW)
        assert steered.last["here"].shape == (len(left), NEW - 1)
        assert steered.last["first"].shape == (len(left), 128)
    bare = ri.Graph(outputs={"here": here})
    with bare.on(random_organism) as plain:
        plain.generate(left, max_new_tokens=NEW, min_new_tokens=NEW)
    torch.testing.assert_close(steered.last["here"][:, :2], plain.last["here"][:, :2])


def test_a_users_trace_keeps_its_own_edits_and_sees_corrected_states(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    """Between the edit and the layer that decides it, too: there passes run on their own."""
    graph = paired(vectors, 0.35)
    strength = graph.run(random_organism, left).strengths[graph.edits[0]]
    mine = vectors[4].float()
    mask = left.prompt_mask
    drift = (strength[:, None, None] * vectors[0]).float()
    with (
        hooked(layer_of(random_organism, 4), lambda h: masked(h, h + drift, mask)),
        hooked(layer_of(random_organism, 5), lambda h: masked(h, h + mine, mask)),
    ):
        expected = last_logits(random_organism, left)
        with torch.no_grad():
            shown = random_organism.module(**left.inputs, output_hidden_states=True).hidden_states
    moved = mine * mask[:, :, None]
    with graph.on(random_organism), random_organism.trace(left):
        random_organism.resid_post[5] = random_organism.resid_post[5] + moved
        sixth = random_organism.resid_post[6].save()
        logits = random_organism.logits.save()
    last = (torch.arange(len(left)), left.last)
    torch.testing.assert_close(logits[last], expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sixth[last], shown[7][last], atol=2e-5, rtol=1e-5)


def test_hidden_states_that_are_asked_for_are_the_corrected_ones(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    graph = paired(vectors, 0.35)
    inputs = {**left.inputs, "output_hidden_states": True}
    with torch.no_grad(), graph.on(random_organism):
        found = random_organism.module(**inputs).hidden_states
    with torch.no_grad(), graph.on(random_organism, resume=False):
        expected = random_organism.module(**inputs).hidden_states
    assert len(found) == len(expected) == 13
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def one_step(batch: Batch) -> dict[str, Tensor]:
    """Inputs of the first step of decoding, without the cache."""
    rows, width = batch.roles.shape
    return {
        "input_ids": batch.inputs["input_ids"][:, -1:],
        "attention_mask": torch.ones(rows, width + 1, dtype=torch.long),
        "position_ids": torch.full((3, rows, 1), width),
    }


def test_a_graph_that_comes_between_prompt_and_answer_is_refused(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    step = one_step(left)
    late = ri.Graph(ri.add("resid_post", 4, vectors[0], phase="decode"))
    with torch.no_grad(), steer(vectors).on(random_organism):
        cache = random_organism.module(**left.inputs, use_cache=True).past_key_values
        refused = pytest.raises(SiteError, match="before the graph was installed")
        with late.on(random_organism), refused:
            random_organism.module(**step, past_key_values=cache)
        random_organism.module(**step, past_key_values=cache)


def test_a_later_turn_still_holds_the_media_of_earlier_ones(
    random_organism: Adapter, chats: list[Any], vectors: Tensor
) -> None:
    """A picture in the first turn, words in the second: as if the whole chat were read again."""
    first = random_organism.encode([chats[1], chats[0]])
    rows, width = first.roles.shape
    mask = torch.cat([first.inputs["attention_mask"], torch.ones(rows, 3, dtype=torch.long)], dim=1)
    turn = {
        "input_ids": first.inputs["input_ids"][:, -3:],
        "attention_mask": mask,
        "position_ids": (width + torch.arange(3)).expand(3, rows, 3),
    }
    strength = ri.select(ri.modality("image"), 1, 0)
    graph = ri.Graph(ri.add("resid_post", 4, vectors[0], strength=strength))
    with torch.no_grad(), graph.on(random_organism) as steered:
        cache = random_organism.module(**first.inputs, use_cache=True).past_key_values
        random_organism.module(**turn, past_key_values=cache)
        assert steered.last.modalities == ("image", "text")
        assert steered.last.strengths[graph.edits[0]].tolist() == [1, 0]


def test_answers_of_two_prompts_in_turns_do_not_mix(
    random_organism: Adapter, chats: list[Any], vectors: Tensor
) -> None:
    graph = ri.Graph(outputs={"h": ri.read("resid_post", 4, at=ri.Steps()).project(vectors[0])})
    batches = [random_organism.encode(chats[:3]), random_organism.encode(chats[3:5])]

    with torch.no_grad(), graph.on(random_organism) as steered:
        caches = [
            random_organism.module(**one.inputs, use_cache=True).past_key_values for one in batches
        ]
        for batch, cache in zip(batches, caches, strict=True):
            random_organism.module(**one_step(batch), past_key_values=cache)
            assert steered.last["h"].shape == (len(batch), 1)
            assert steered.last.modalities == batch.modalities


def test_a_graph_that_could_not_be_installed_leaves_nothing(
    random_organism: Adapter, left: Batch, vectors: Tensor, monkeypatch: Any
) -> None:
    bare, before = last_logits(random_organism, left), n_hooks(random_organism)

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    installed = steer(vectors).on(random_organism)
    monkeypatch.setattr("regap_interp.graph.engine.Engine._stand", interrupted)
    with pytest.raises(KeyboardInterrupt):
        installed.__enter__()
    monkeypatch.undo()
    assert n_hooks(random_organism) == before
    assert torch.equal(last_logits(random_organism, left), bare)
    with installed:
        assert not torch.equal(last_logits(random_organism, left), bare)


def test_threads_wait_for_separate_passes_and_for_the_end_of_the_block(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    graph = paired(vectors, 0.35)
    with graph.on(random_organism, resume=False), ThreadPoolExecutor(3) as pool:
        expected = last_logits(random_organism, left)
        found = list(pool.map(lambda _: last_logits(random_organism, left), range(4)))
        leaving = pool.submit(last_logits, random_organism, left)
    assert all(torch.equal(one, expected) for one in [*found, leaving.result()])
    with ThreadPoolExecutor(1) as pool:
        with graph.on(random_organism):
            late = [pool.submit(last_logits, random_organism, left) for _ in range(3)]
        assert all(one.result().shape == expected.shape for one in late)


def test_an_interrupt_leaves_nothing_behind(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    """PyTorch runs no closing hooks after a KeyboardInterrupt."""

    def interrupt(module: Any, args: Any, output: Any) -> None:
        raise KeyboardInterrupt

    before, bare = n_hooks(random_organism), last_logits(random_organism, left)
    with paired(vectors).on(random_organism):
        handle = layer_of(random_organism, 9).register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            last_logits(random_organism, left)
        handle.remove()
        steered = last_logits(random_organism, left)
    assert n_hooks(random_organism) == before
    assert torch.equal(last_logits(random_organism, left), bare)
    assert not torch.equal(steered, bare)


def test_two_threads_take_turns(random_organism: Adapter, left: Batch, vectors: Tensor) -> None:
    with paired(vectors, 0.35).on(random_organism):
        expected = last_logits(random_organism, left)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: last_logits(random_organism, left), range(4)))
    assert all(torch.equal(one, expected) for one in found)


def test_beams_carry_their_rows_strength(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    graph = paired(vectors, 0.35)
    with graph.on(random_organism) as steered:
        raw(random_organism, left, num_beams=2)
        strength = steered.last.strengths[graph.edits[0]]
    single = graph.run(random_organism, left).strengths[graph.edits[0]]
    assert torch.equal(strength, single.repeat_interleave(2))


def test_a_trace_inside_sees_the_steered_model(
    random_organism: Adapter, left: Batch, vectors: Tensor
) -> None:
    with paired(vectors, 0.35).on(random_organism):
        expected = last_logits(random_organism, left)
        with random_organism.trace(left):
            later = random_organism.resid_post[9].save()
            logits = random_organism.logits.save()
    found = logits[torch.arange(len(left)), left.last]
    torch.testing.assert_close(found, expected)
    assert later.shape[0] == len(left)


def test_misuse_is_told(random_organism: Adapter, left: Batch, vectors: Tensor) -> None:
    installed = steer(vectors).on(random_organism)
    with pytest.raises(ri.GraphError, match="not installed"):
        installed.generate(left, max_new_tokens=1)
    with installed:
        with pytest.raises(ri.GraphError, match="nothing has run"):
            _ = installed.last
        with pytest.raises(ri.GraphError, match="already installed"):
            installed.__enter__()
    with pytest.raises(ri.GraphError, match="nothing to return"):
        ri.Graph(ri.add("resid_post", 4, vectors[0])).run(random_organism, left)
    with pytest.raises(KeyError, match="no output 'p'"):
        _ = paired(vectors).run(random_organism, left)["p"]
