"""Generation equals the raw model's; every step can be read and written, and has a name."""

import copy
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import model_adapters
from model_adapters import Adapter, InputError, SiteError

NEW = 6


@pytest.fixture
def batch(adapter: Adapter, requests_of_every_kind: Any) -> Any:
    return adapter.encode(requests_of_every_kind)


def raw(model: Any, batch: Any, **options: Any) -> torch.Tensor:
    """New tokens of the bare model's own generate."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **options}
    tokens: torch.Tensor = model.generate(**batch.inputs, **settings)
    return tokens[:, batch.roles.shape[1] :]


def hooked(model: Any, batch: Any, vector: torch.Tensor, phase: str) -> torch.Tensor:
    """The same with a plain hook that adds `vector` after layer 1 in one phase."""

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        is_prefill = output.shape[1] > 1
        return output + vector if is_prefill == (phase == "prefill") else output

    handle = model.model.language_model.layers[1].register_forward_hook(add)
    try:
        return raw(model, batch)
    finally:
        handle.remove()


@pytest.fixture
def vector(adapter: Adapter) -> torch.Tensor:
    return 5 * torch.cos(torch.arange(float(adapter.d_model)))


def test_plain_generation_equals_the_raw_models(adapter: Adapter, bare: Any, batch: Any) -> None:
    answers = adapter.generate(batch, max_new_tokens=NEW)
    assert torch.equal(answers.tokens, raw(bare, batch))
    assert len(answers) == len(batch)
    assert answers.lengths.tolist() == [NEW] * len(batch)
    assert not answers.ended.any()


def test_ready_encodings_generate_too(adapter: Adapter, bare: Any, batch: Any) -> None:
    answers = adapter.generate(**batch.inputs, max_new_tokens=NEW)
    assert torch.equal(answers.tokens, raw(bare, batch))


def test_an_edit_in_the_prefill_equals_a_plain_hook(
    adapter: Adapter, bare: Any, batch: Any, vector: torch.Tensor
) -> None:
    def edit(adapter: Adapter) -> None:
        adapter.resid_post[1] = adapter.resid_post[1] + vector

    answers = adapter.generate(batch, max_new_tokens=NEW, prefill=edit)
    expected = hooked(bare, batch, vector, "prefill")
    assert torch.equal(answers.tokens, expected)
    assert not torch.equal(expected, raw(bare, batch)), "the edit should show"


def test_an_edit_in_decoding_equals_a_plain_hook(
    adapter: Adapter, bare: Any, batch: Any, vector: torch.Tensor
) -> None:
    steps = []

    def edit(adapter: Adapter, step: int) -> None:
        steps.append((step, tuple(adapter.embed.shape)))
        adapter.resid_post[1] = adapter.resid_post[1] + vector

    answers = adapter.generate(batch, max_new_tokens=NEW, decode=edit)
    expected = hooked(bare, batch, vector, "decode")
    assert torch.equal(answers.tokens, expected)
    assert not torch.equal(expected, raw(bare, batch)), "the edit should show"
    assert steps == [(step, (len(batch), 1, adapter.d_model)) for step in range(1, NEW)]


def test_functions_that_touch_nothing_change_nothing(
    adapter: Adapter, bare: Any, batch: Any
) -> None:
    calls: list[Any] = []
    answers = adapter.generate(
        batch,
        max_new_tokens=NEW,
        prefill=lambda adapter: calls.append("prefill"),
        decode=lambda adapter, step: calls.append(step),
    )
    assert calls == ["prefill", *range(1, NEW)]
    assert torch.equal(answers.tokens, raw(bare, batch))


def test_the_with_form_names_prefill_and_decode(
    adapter: Adapter, bare: Any, batch: Any, vector: torch.Tensor
) -> None:
    seen = []
    with adapter.generate(batch, max_new_tokens=NEW) as run:
        for step in run.steps():
            seen.append((step.number, step.phase, adapter.resid_post[0].shape[1]))
            if step.phase == "prefill":
                adapter.resid_post[1] = adapter.resid_post[1] + vector
    width = batch.roles.shape[1]
    assert seen == [(0, "prefill", width), *((n, "decode", 1) for n in range(1, NEW))]
    assert torch.equal(run.generation.tokens, hooked(bare, batch, vector, "prefill"))


def test_the_with_form_without_steps_sees_the_prefill(
    adapter: Adapter, bare: Any, batch: Any, vector: torch.Tensor
) -> None:
    with adapter.generate(batch, max_new_tokens=NEW) as run:
        adapter.resid_post[1] = adapter.resid_post[1] + vector
        tokens = run.result.save()
    expected = hooked(bare, batch, vector, "prefill")
    assert torch.equal(run.generation.tokens, expected)
    assert torch.equal(tokens[:, batch.roles.shape[1] :], expected)


def test_several_invokes_in_one_generation(
    adapter: Adapter, requests_of_every_kind: Any, vector: torch.Tensor
) -> None:
    text, image = (adapter.encode([request]) for request in requests_of_every_kind[:2])
    shapes = []
    with adapter.generate(max_new_tokens=NEW) as run:
        with run.invoke(text):
            for step in run.steps():
                shapes.append((step.phase, adapter.resid_post[0].shape[:2]))
        with run.invoke(image):
            for step in run.steps():
                if step.phase == "prefill":
                    adapter.resid_post[1] = adapter.resid_post[1] + vector
    assert shapes[0] == ("prefill", text.roles.shape)
    assert set(shapes[1:]) == {("decode", (1, 1))}

    def edit(adapter: Adapter) -> None:
        adapter.resid_post[1] = adapter.resid_post[1] + vector

    expected = [
        adapter.generate(text, max_new_tokens=NEW).tokens,
        adapter.generate(image, max_new_tokens=NEW, prefill=edit).tokens,
    ]
    assert torch.equal(run.generation.tokens, torch.cat(expected))


def test_a_call_in_a_one_line_with_is_still_a_call(adapter: Adapter, batch: Any) -> None:
    with torch.no_grad(): answers = adapter.generate(batch, max_new_tokens=1)  # noqa: E701  # fmt: skip
    assert answers.tokens.shape == (len(batch), 1)


def test_rows_that_end_early_are_padded_and_texts_stripped(
    adapter: Adapter, bare: Any, batch: Any
) -> None:
    plain = raw(bare, batch)
    end = int(plain[0, 2])
    answers = adapter.generate(batch, max_new_tokens=NEW, eos_token_id=end)
    assert torch.equal(answers.tokens, raw(bare, batch, eos_token_id=end))
    ends = [(row == end).nonzero().flatten().tolist() for row in plain]
    assert answers.lengths.tolist() == [e[0] + 1 if e else NEW for e in ends]
    assert answers.ended.tolist() == [bool(e) for e in ends]
    length = int(answers.lengths[0])
    assert answers.tokens[0, length:].eq(0).all()
    tokenizer = adapter.tokenizer
    words = tokenizer.decode(answers.tokens[0, :length], skip_special_tokens=True).strip()
    assert answers.texts[0] == words == words.strip()


def test_stopping_at_the_first_step_is_no_error(adapter: Adapter, batch: Any) -> None:
    first = adapter.encode([[{"role": "user", "content": "w5"}]])
    end = int(adapter.generate(first, max_new_tokens=1).tokens[0, 0])
    answers = adapter.generate(
        first,
        max_new_tokens=NEW,
        eos_token_id=end,
        decode=lambda adapter, step: adapter.resid_post[0],
    )
    assert answers.lengths.tolist() == [1]


def test_sampling_when_told_so(adapter: Adapter, batch: Any, bare: Any) -> None:
    torch.manual_seed(3)
    answers = adapter.generate(batch, max_new_tokens=NEW, do_sample=True, temperature=2.0)
    torch.manual_seed(3)
    expected = raw(bare, batch, do_sample=True, temperature=2.0)
    assert torch.equal(answers.tokens, expected)


def test_an_installed_edit_acts_on_every_call(
    adapter: Adapter, bare: Any, batch: Any, vector: torch.Tensor
) -> None:
    with adapter.edit() as (_, edited):
        adapter.resid_post[1] = adapter.resid_post[1] + vector
    expected = hooked(bare, batch, vector, "prefill")
    assert torch.equal(edited.generate(batch, max_new_tokens=NEW).tokens, expected)
    with edited.trace(batch):
        traced = edited.logits.save()
    assert torch.equal(edited(batch).logits, traced)
    assert not torch.equal(adapter(batch).logits, traced)


def test_a_site_that_decoding_does_not_reach(adapter: Adapter, batch: Any) -> None:
    with pytest.raises(SiteError, match=r"visual.* runs in the prefill only, for requests with im"):
        adapter.generate(
            batch,
            max_new_tokens=NEW,
            decode=lambda adapter, step: adapter.model.visual.output,
        )


def test_a_mask_of_the_prompt_does_not_fit_decoding(adapter: Adapter, batch: Any) -> None:
    mask = batch.prompt_mask[..., None].float()

    def edit(adapter: Adapter, step: int) -> None:
        adapter.resid_post[1] = adapter.resid_post[1] * mask

    with pytest.raises(SiteError, match="decoding steps have one position"):
        adapter.generate(batch, max_new_tokens=NEW, decode=edit)


def test_right_padding_is_refused(adapter: Adapter, requests_of_every_kind: Any) -> None:
    batch = adapter.encode(requests_of_every_kind, padding_side="right")
    with pytest.raises(InputError, match="must be padded on the left"):
        adapter.generate(batch, max_new_tokens=NEW)
    with pytest.raises(InputError, match="must be padded on the left"):
        adapter.generate(batch, max_new_tokens=NEW, prefill=lambda adapter: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 3}, "did you mean 'max_new_tokens'"),
        ({"num_beams": 2}, "num_beams=2 multiplies rows.*; leave it at 1"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 multiplies rows"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate=True is not supported"),
        ({"use_cache": False}, "use_cache=False reads the whole prompt again in every step"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size=4 cuts the prefill"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 runs a second prompt"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 reads several tokens"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha=0.5 is neither greedy"),
        ({"stop_strings": ["w5"]}, "would cut rows"),
        ({"assistant_model": None}, "generate takes no 'assistant_model'"),
        ({"eos_token_id": None}, "eos_token_id=None: .* min_new_tokens"),
        ({"max_new_tokens": 0}, "whole number of at least 1"),
    ],
)
def test_options_that_cannot_work(
    adapter: Adapter, batch: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        adapter.generate(batch, **{"max_new_tokens": NEW, **options})


def test_functions_and_with_exclude_each_other(adapter: Adapter, batch: Any) -> None:
    with (
        pytest.raises(InputError, match="not both"),
        adapter.generate(batch, max_new_tokens=1, prefill=lambda adapter: None),
    ):
        adapter.resid_post[0].save()


LATE = {
    "read": lambda adapter: adapter.resid_post[1],
    "write": lambda adapter: adapter.resid_post.__setitem__(1, torch.zeros(5, 1, 32)),
    "head": lambda adapter: adapter.z[2],
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("late_step", [0, 1, 3, NEW - 1])
def test_a_site_the_pass_has_gone_past(
    adapter: Adapter, batch: Any, name: str, late_step: int
) -> None:
    """Neither the next pass's value nor a quiet end of the loop, in either form."""

    def late(adapter: Adapter, step: int) -> None:
        _ = adapter.resid_post[2]
        if step == late_step:
            LATE[name](adapter)

    message = rf"(resid_post\[1\]|z\[2\]) could not be had in pass {late_step}: "
    with pytest.raises(SiteError, match=message):
        adapter.generate(
            batch, max_new_tokens=NEW, prefill=lambda adapter: late(adapter, 0), decode=late
        )
    with pytest.raises(SiteError, match=message), adapter.generate(batch, max_new_tokens=NEW) as r:
        for step in r.steps():
            late(adapter, step.number)


@pytest.mark.parametrize("row", [0, 1])
def test_an_encoder_asked_for_in_decoding(
    adapter: Adapter, requests_of_every_kind: Any, row: int
) -> None:
    """Whether it ran in the prefill or not."""
    batch = adapter.encode([requests_of_every_kind[row]])
    message = r"visual.output could not be had in pass 1: this encoder runs in the prefill only"
    with pytest.raises(SiteError, match=message):
        adapter.generate(
            batch, max_new_tokens=NEW, decode=lambda adapter, step: adapter.model.visual.output
        )
    with pytest.raises(SiteError, match=message), adapter.generate(batch, max_new_tokens=NEW) as r:
        for step in r.steps():
            if step.phase == "decode":
                _ = adapter.model.visual.output


def test_a_module_the_pass_has_gone_past(adapter: Adapter, batch: Any) -> None:
    """Modules are nnsight's: the request slips to the next pass, and the loop must say so."""
    layers = adapter.model.language_model.layers

    def late(adapter: Adapter, step: int) -> None:
        _ = layers[2].output
        if step == 2:
            _ = layers[1].output

    with pytest.raises(SiteError, match="before pass 3 it asked for a value that the model had"):
        adapter.generate(batch, max_new_tokens=NEW, decode=late)


def test_every_site_in_every_step_changes_nothing(adapter: Adapter, bare: Any, batch: Any) -> None:
    kinds = ("resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post")

    def rewrite(adapter: Adapter, step: int = 0) -> None:
        for layer in range(adapter.n_layers):
            for kind in kinds:
                sites = getattr(adapter, kind)
                if kind != "result":
                    sites[layer] = sites[layer] + 0
                _ = sites[layer]
        adapter.logits = adapter.logits + 0

    answers = adapter.generate(batch, max_new_tokens=NEW, prefill=rewrite, decode=rewrite)
    assert torch.equal(answers.tokens, raw(bare, batch))


def test_nnsights_own_open_loop_ends_as_it_does_in_nnsight(adapter: Adapter, batch: Any) -> None:
    seen = []
    with (
        pytest.warns(UserWarning, match="was never reached"),
        adapter.generate(batch, max_new_tokens=NEW) as run,
    ):
        for number in run.iter[:]:
            seen.append((number, adapter.resid_post[1].shape[1]))
    assert seen == [(0, batch.roles.shape[1]), *((n, 1) for n in range(1, NEW))]


@pytest.fixture
def opinionated(adapter: Adapter) -> Iterator[Any]:
    """The generation config of the model, to be changed as checkpoints do; put back afterwards."""
    kept = adapter.module.generation_config
    adapter.module.generation_config = copy.deepcopy(kept)
    yield adapter.module.generation_config
    adapter.module.generation_config = kept


def test_a_checkpoints_own_settings_leave_it_greedy(
    adapter: Adapter, batch: Any, opinionated: Any
) -> None:
    plain = adapter.generate(batch, max_new_tokens=NEW).tokens
    opinionated.update(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        num_beams=2,
        num_return_sequences=2,
        return_dict_in_generate=True,
        use_cache=False,
        guidance_scale=3.0,
        repetition_penalty=50.0,
        no_repeat_ngram_size=1,
        min_new_tokens=NEW,
    )
    assert torch.equal(adapter.generate(batch, max_new_tokens=NEW).tokens, plain)
    penalised = adapter.generate(batch, max_new_tokens=NEW, repetition_penalty=50.0).tokens
    assert not torch.equal(penalised, plain), "what the caller asks for is done"


def test_a_checkpoint_that_cannot_be_made_greedy(
    adapter: Adapter, batch: Any, opinionated: Any
) -> None:
    opinionated.prefill_chunk_size = 4
    with pytest.raises(InputError, match=r"prefill_chunk_size=4 \(set in .*\) cuts the prefill"):
        adapter.generate(batch, max_new_tokens=NEW)


def test_a_trace_must_be_opened_by_the_call_itself(adapter: Adapter, batch: Any) -> None:
    answers = adapter.generate(batch, max_new_tokens=1)
    with pytest.raises(SiteError, match=r"already run.*with adapter\.generate"), answers:
        pass
    alias = adapter.generate
    with pytest.raises(SiteError, match="by its own name"), alias(batch, max_new_tokens=1) as run:
        run.steps()


def test_threads_leave_the_filters_of_warnings_alone(
    adapter: Adapter, fresh_thinker: Any, parts: Any
) -> None:
    """They belong to the whole process, and two models run at the same time."""
    other = model_adapters.load(fresh_thinker())
    batch = adapter.encode([parts.user("w5")])
    before = list(warnings.filters)
    errors: list[Exception] = []

    def work(adapter: Adapter) -> None:
        try:
            for _ in range(4):
                adapter.generate(batch, max_new_tokens=2, decode=lambda adapter, step: None)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in (adapter, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert warnings.filters == before
