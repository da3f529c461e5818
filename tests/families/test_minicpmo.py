"""MiniCPM-o 2.6 and 4.5: the vendor's calls, mended, traced and steered.

The stand-in is built like the vendor's code. Its unprepared crashes are tested too: without them it
would be no stand-in. `MINICPMO_DIR` names a real checkout to run the last test on.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import model_adapters
import regap_interp as ri
from model_adapters import Adapter, Batch, InputError, LoadError, SiteError
from model_adapters.families.minicpmo_mend import importing, prepare, prepare_class
from model_adapters.probe import example
from model_adapters.tiny.minicpmo import PLACEHOLDER, minicpmo

LAYER, NEW = 2, 4
ENDS = [117, 118]
PROMPTS: dict[str, tuple[tuple[str, ...], int]] = {
    "text": ((), 0),
    "image": (("image",), 0),
    "two images": (("image",), 1),
    "audio": (("audio",), 0),
    "longer audio": (("audio",), 1),
    "both": (("image", "audio"), 0),
}


class Tokenizer:
    """The parts that the vendor's `generate` uses."""

    bos_id = 1
    eos_token_id = ENDS[0]
    unk_token_id = PLACEHOLDER

    def convert_tokens_to_ids(self, token: str) -> int:
        return dict(zip(("<|im_end|>", "<|endoftext|>"), ENDS, strict=True))[token]

    def decode(self, tokens: Tensor) -> str:
        return " ".join(map(str, tokens.tolist()))


@pytest.fixture(scope="module", params=["4.5", "2.6"])
def adapter(request: Any) -> Adapter:
    return model_adapters.load(minicpmo(request.param))


@pytest.fixture(scope="module")
def encodings(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """One encoding of every kind."""
    return {
        name: example(adapter.module, adapter.family, kinds, size=size, seed=number)
        for number, (name, (kinds, size)) in enumerate(PROMPTS.items())
    }


@pytest.fixture(scope="module")
def batch(adapter: Adapter, encodings: dict[str, dict[str, Any]]) -> Batch:
    """All of them, padded on the left."""
    return adapter.join(list(encodings.values()))


@pytest.fixture(scope="module")
def shift() -> Tensor:
    return 2 * torch.randn(128, generator=torch.Generator().manual_seed(4))


def as_processed(batch: Batch) -> dict[str, Any]:
    """The form in which the vendor's processor gives it."""
    inputs = {"audio_features": [], "audio_feature_lens": [], **batch.inputs}
    inputs.setdefault("pixel_values", [[] for _ in range(len(batch))])
    inputs["input_ids"] = inputs["input_ids"].int()
    inputs["attention_mask"] = inputs["attention_mask"].bool()
    return inputs


def vendor_data(batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """What the vendor's `forward` takes."""
    inputs = as_processed(batch)
    mask = inputs.pop("attention_mask")
    return {**inputs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}, mask


def our_generate(adapter: Adapter, batch: Batch) -> Tensor:
    """The adapter's, asked for the same."""
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": ENDS}
    return adapter.generate(batch, **options).tokens


def vendor_generate(adapter: Adapter, batch: Batch, **options: Any) -> tuple[list[str], Tensor]:
    """The vendor's own call."""
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": 1}
    texts, output = adapter.module.generate(
        **as_processed(batch), tokenizer=Tokenizer(), **{**settings, **options}
    )
    return texts, output.sequences


@contextmanager
def hooked(module: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A plain hook that replaces a module's output."""
    handle = module.register_forward_hook(lambda module, args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def in_prompt(batch: Batch, shift: Tensor, role: str | None = None) -> Callable[[Tensor], Tensor]:
    """Adds `shift` in the prefill, at prompt positions or those of one role."""
    mask = batch.prompt_mask if role is None else batch.mask(role)

    def change(states: Tensor) -> Tensor:
        if states.shape[1] == 1:
            return states
        each = len(states) // len(mask)
        return states + shift * mask.repeat_interleave(each, dim=0)[..., None]

    return change


# --- the stand-in breaks as the vendor's code does ---


@pytest.fixture(params=["4.5", "2.6"])
def vendor(request: Any) -> Any:
    """A model that nobody prepared, with encodings for it."""
    return minicpmo(request.param)


def prompt(model: Any, *kinds: str, size: int = 0) -> dict[str, Any]:
    prepared = copy.deepcopy(model)
    prepare(prepared)
    return example(prepared, model_adapters.families.family_of(model.config), kinds, size=size)


def test_unprepared_generate_asks_the_cache_for_what_is_gone(vendor: Any) -> None:
    inputs = {**prompt(vendor), "pixel_values": [[]], "audio_features": []}
    with pytest.raises(AttributeError, match="seen_tokens"):
        vendor.generate(**inputs, tokenizer=Tokenizer(), max_new_tokens=2)


def test_unprepared_audio_expects_three_values_of_attention(vendor: Any) -> None:
    inputs = {
        "pixel_values": [[]],
        "position_ids": torch.arange(50)[None],
        **prompt(vendor, "audio"),
    }
    with pytest.raises(ValueError, match=r"expected 3, got 2"):
        vendor(inputs)


def test_unprepared_forward_takes_one_dict_and_works_with_images(vendor: Any) -> None:
    inputs = prompt(vendor, "image")
    mask = inputs.pop("attention_mask")
    with pytest.raises(TypeError, match="data"):
        vendor(**inputs)
    inputs |= {"position_ids": (mask.cumsum(-1) - 1).int(), "audio_features": []}
    assert vendor(inputs, attention_mask=mask).logits.isfinite().all()


def test_only_the_later_version_writes_media_into_the_embeddings(vendor: Any) -> None:
    """Of what `embed_tokens` returned a trace has to keep a clone."""
    inputs = prompt(vendor, "image")
    mask = inputs.pop("attention_mask")
    kept: list[Tensor] = []
    vendor.llm.model.embed_tokens.register_forward_hook(
        lambda module, args, output: kept.extend([output, output.clone()])
    )
    data = {**inputs, "position_ids": mask.cumsum(-1) - 1, "audio_features": []}
    with torch.no_grad():
        vendor(data, attention_mask=mask)
    assert torch.equal(kept[0], kept[1]) == (vendor.config.version == "2.6")


def test_a_saved_model_loads_only_through_the_mended_class(vendor: Any, tmp_path: Path) -> None:
    inputs = prompt(vendor, "image", "audio")
    vendor.save_pretrained(tmp_path)
    fresh = type("MiniCPMO", (type(vendor),), {})
    with pytest.raises(AttributeError, match="all_tied_weights_keys"):
        fresh.from_pretrained(tmp_path)
    prepare_class(fresh)
    prepare_class(fresh)
    loaded = fresh.from_pretrained(tmp_path).eval()
    # Loading may or may not leave the old numbers in that memory.
    loaded.resampler.pos_embed.fill_(torch.nan)
    for model in (loaded, vendor):
        prepare(model)
        prepare(model)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, vendor(**inputs).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert '"MiniCPMO"' in (tmp_path / "again" / "config.json").read_text()


def test_names_that_are_gone_are_there_while_the_file_is_imported() -> None:
    import transformers

    with importing():
        assert transformers.LogitsWarper is transformers.LogitsProcessor
    assert not hasattr(transformers, "LogitsWarper")


def test_unprepared_audio_depends_on_its_neighbours_and_prepared_does_not(
    adapter: Adapter, encodings: dict[str, dict[str, Any]]
) -> None:
    pair = adapter.join([encodings["audio"], encodings["longer audio"]]).inputs
    alone = encodings["audio"]
    vendors = type(adapter.module).__mro__[2].get_audio_embedding
    with torch.no_grad():
        wrong, right = (
            float((of(pair)[0][0] - of(alone)[0][0]).abs().max())
            for of in (lambda d: vendors(adapter.module, d), adapter.module.get_audio_embedding)
        )
    assert wrong > 1e-2
    assert right == 0


# --- what stands where ---


def test_roles_are_told_by_bounds_and_hold_what_the_encoders_made(
    adapter: Adapter, batch: Batch
) -> None:
    assert batch.modalities == ("text", "image", "image", "audio", "audio", "omni")
    assert [len(of) for of in batch.images] == [0, 1, 2, 0, 0, 1]
    assert [[one.frames for one in of] for of in batch.audios][3:] == [
        [(0, 41)],
        [(0, 64)],
        [(0, 41)],
    ]
    assert all(one.grid is None for of in batch.images for one in of)
    images: list[Tensor] = []
    clips: list[Tensor] = []
    handles = [
        adapter.module.resampler.register_forward_hook(
            lambda module, args, output: images.append(output.flatten(0, 1))
        ),
        adapter.module.audio_avg_pooler.register_forward_hook(
            lambda module, args, output: clips.append(output[0].T)
        ),
    ]
    with adapter.trace(batch):
        entering = adapter.embed.save()
    for handle in handles:
        handle.remove()
    assert torch.equal(entering[batch.mask("image")], torch.cat(images))
    assert torch.equal(entering[batch.mask("audio")], torch.cat(clips))
    assert batch.mask("image").sum() == 16
    assert len(batch.inputs["audio_features"]) == 3


def test_every_row_of_a_batch_is_what_it_is_alone(
    adapter: Adapter, batch: Batch, encodings: dict[str, dict[str, Any]]
) -> None:
    with torch.no_grad():
        together = adapter.module(**batch.inputs).logits
        answers = adapter.generate(batch, max_new_tokens=NEW).tokens
        for row, encoding in enumerate(encodings.values()):
            alone = adapter.module(**encoding).logits[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=2e-5, rtol=0)
            assert torch.equal(
                adapter.generate(**encoding, max_new_tokens=NEW).tokens[0], answers[row]
            )


def test_the_flat_call_is_the_vendors(adapter: Adapter, batch: Batch) -> None:
    data, mask = vendor_data(batch)
    with torch.no_grad():
        flat = adapter.module(**batch.inputs).logits
        for logits in (
            adapter.module(data, attention_mask=mask).logits,
            adapter.module(data=data, attention_mask=mask).logits,
        ):
            assert torch.equal(logits[batch.prompt_mask], flat[batch.prompt_mask])
        left_out = {k: v for k, v in as_processed(batch).items() if "bounds" not in k}
        kept = {**left_out, "audio_bounds": batch.inputs["audio_bounds"], "image_sizes": [[]] * 6}
        assert torch.equal(adapter.module(**kept).logits, flat)


def test_encodings_of_the_vendors_processor_are_taken_as_they_are(
    adapter: Adapter, batch: Batch, encodings: dict[str, dict[str, Any]]
) -> None:
    """Integers of 32 bits, masks of booleans, empty lists, and inputs that nothing reads."""
    more = {"image_sizes": [[]], "spk_bounds": [torch.zeros(0, 2, dtype=torch.long)]}
    each = [
        {**as_processed(adapter.describe(**one)), **more} for one in list(encodings.values())[1:]
    ]
    text = {"tgt_sizes": [[]], "image_bound": [torch.zeros(0, 2)], "audio_bounds": [[]], **more}
    each = [{**as_processed(adapter.describe(**encodings["text"])), **text}, *each]
    joined = adapter.join(each)
    assert torch.equal(joined.roles, batch.roles)
    assert (joined.images, joined.audios) == (batch.images, batch.audios)
    expected = adapter.generate(batch, max_new_tokens=2).tokens
    assert torch.equal(adapter.generate(joined, max_new_tokens=2).tokens, expected)
    alone = adapter.generate(**each[-1], max_new_tokens=2)
    assert torch.equal(alone.tokens[0], expected[-1])


def test_the_vendors_generate_keeps_its_form_and_gives_the_same_tokens(
    adapter: Adapter, batch: Batch
) -> None:
    texts, tokens = vendor_generate(adapter, batch)
    ours = our_generate(adapter, batch)
    assert tokens.shape == (6, NEW)
    assert torch.equal(tokens, ours)
    assert all(isinstance(text, str) for text in texts)
    whole = adapter.module.generate(
        **batch.inputs, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=ENDS
    )
    assert torch.equal(whole[:, :-NEW], batch.inputs["input_ids"])
    assert torch.equal(whole[:, -NEW:], ours)


def test_decoding_by_hand_goes_on_from_a_cache(adapter: Adapter, batch: Batch) -> None:
    expected = adapter.generate(batch, max_new_tokens=2, min_new_tokens=2).tokens
    with torch.no_grad():
        first = adapter.module(**batch.inputs, use_cache=True)
        token = first.logits[:, -1:].argmax(-1)
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones(6, 1).long()], dim=1)
        second = adapter.module(
            input_ids=token, attention_mask=mask, past_key_values=first.past_key_values
        )
    assert torch.equal(torch.cat([token, second.logits[:, -1:].argmax(-1)], dim=1), expected)


# --- tracing and steering ---


def test_a_trace_reads_and_writes_what_plain_hooks_do(
    adapter: Adapter, batch: Batch, shift: Tensor
) -> None:
    layers = adapter.module.llm.model.layers
    data, mask = vendor_data(batch)
    seen: list[Tensor] = []
    with torch.no_grad(), hooked(layers[LAYER], lambda out: seen.append(out.clone())):
        adapter.module(data, attention_mask=mask)
    with torch.no_grad(), hooked(layers[LAYER], in_prompt(batch, shift, "audio")):
        expected = adapter.module(data, attention_mask=mask).logits
    with adapter.trace(batch) as tracer:
        stream = adapter.resid_post[LAYER].clone().save()
        adapter.resid_post[LAYER] = stream + shift * batch.mask("audio")[..., None]
        logits = tracer.result.logits.save()
    real = batch.prompt_mask
    assert torch.equal(stream[real], seen[0][real])
    assert torch.equal(logits[real], expected[real])


def test_steps_name_the_prefill_with_its_encoders_and_every_decode_step(
    adapter: Adapter, batch: Batch, shift: Tensor
) -> None:
    def change(states: Tensor) -> Tensor:
        return states + shift if states.shape[1] == 1 else in_prompt(batch, shift)(states)

    with hooked(adapter.module.llm.model.layers[LAYER], change):
        _, expected = vendor_generate(adapter, batch)
    with pytest.raises(SiteError, match="runs in the prefill only"):
        adapter.generate(batch, max_new_tokens=2, decode=lambda adapter, step: adapter.vpm.output)
    with pytest.raises(SiteError, match="runs in the prefill only"):
        adapter.generate(batch, max_new_tokens=2, decode=lambda run, step: run.resampler.output)
    names, shapes, images = [], [], []
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "eos_token_id": ENDS}
    with adapter.generate(batch, **options) as run:
        for step in run.steps():
            if step.phase == "prefill":
                images.append(adapter.resampler.output.clone())
            names.append(step)
            stream = adapter.resid_post[LAYER]
            shapes.append(stream.shape[1])
            adapter.resid_post[LAYER] = stream + shift * (
                batch.prompt_mask[..., None] if step.number == 0 else 1
            )
    assert [tuple(step) for step in names] == [
        (0, "prefill"),
        *((number, "decode") for number in range(1, NEW)),
    ]
    assert shapes == [batch.roles.shape[1], *[1] * (NEW - 1)]
    assert images[0].shape == (4, 4, 128)
    assert torch.equal(run.generation.tokens, expected)
    asked = adapter.generate(batch, max_new_tokens=2, decode=lambda adapter, step: None)
    assert asked.tokens.shape == (6, 2)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("role", [None, "image"])
def test_an_installed_graph_steers_the_vendors_generate_as_a_plain_hook(
    adapter: Adapter, batch: Batch, shift: Tensor, beams: int, role: str | None
) -> None:
    at = "prompt" if role is None else role
    graph = ri.Graph(ri.add("resid_post", LAYER, shift.double(), at=at))
    bare = vendor_generate(adapter, batch, num_beams=beams)[1]
    with hooked(adapter.module.llm.model.layers[LAYER], in_prompt(batch, shift, role)):
        expected = vendor_generate(adapter, batch, num_beams=beams)[1]
    with graph.on(adapter):
        assert torch.equal(vendor_generate(adapter, batch, num_beams=beams)[1], expected)
        if beams == 1:
            assert torch.equal(our_generate(adapter, batch), expected)
    assert not torch.equal(bare, expected)
    assert torch.equal(vendor_generate(adapter, batch, num_beams=beams)[1], bare)


def test_decode_steps_are_steered_too(adapter: Adapter, batch: Batch, shift: Tensor) -> None:
    graph = ri.Graph(ri.add("resid_post", LAYER, shift.double(), phase="decode"))

    def change(states: Tensor) -> Tensor:
        return states + shift if states.shape[1] == 1 else states

    with hooked(adapter.module.llm.model.layers[LAYER], change):
        expected = vendor_generate(adapter, batch)[1]
    with graph.on(adapter):
        assert torch.equal(vendor_generate(adapter, batch)[1], expected)


def test_zero_strength_is_the_bare_model_bit_for_bit(
    adapter: Adapter, batch: Batch, shift: Tensor
) -> None:
    with torch.no_grad():
        bare = adapter.module(**batch.inputs).logits
        with ri.Graph(ri.add("resid_post", LAYER, shift.double(), strength=0)).on(adapter):
            assert torch.equal(adapter.module(**batch.inputs).logits, bare)


@pytest.mark.parametrize("resume", [True, False])
def test_a_gate_on_a_probe_of_a_later_layer_holds_in_the_vendors_generate(
    adapter: Adapter, batch: Batch, shift: Tensor, resume: bool
) -> None:
    """Other passes go through the language model only, from the embeddings of this one."""
    direction = shift.double() / shift.norm()
    probe = ri.read("resid_post", 3, under=[]).project(direction)
    cut = float(ri.Graph(outputs={"v": probe}).run(adapter, batch)["v"].median())
    edit = ri.add("resid_post", 0, shift.double(), strength=ri.select(probe > cut, 1, 0))
    with ri.Graph(edit).on(adapter, resume=resume) as steered:
        found = vendor_generate(adapter, batch)[1]
        opened = steered.last.strengths[edit]
    assert sorted(set(opened.tolist())) == [0, 1]
    rows = batch.prompt_mask & (opened != 0)[:, None]

    def change(states: Tensor) -> Tensor:
        return states if states.shape[1] == 1 else states + shift * rows[..., None]

    with hooked(adapter.module.llm.model.layers[0], change):
        assert torch.equal(vendor_generate(adapter, batch)[1], found)


def test_the_language_model_called_past_the_model_is_refused(
    adapter: Adapter, batch: Batch, shift: Tensor
) -> None:
    embeddings = torch.zeros(1, 3, 128)
    vendor_generate(adapter, batch)
    with ri.Graph(ri.add("resid_post", LAYER, shift.double())).on(adapter):
        with pytest.raises(InputError, match="without input_ids"):
            adapter.module.llm(inputs_embeds=embeddings)
        with pytest.raises(SiteError, match="past the model's"):
            adapter.module.llm.model(inputs_embeds=embeddings)
        with pytest.raises(SiteError, match="use_cache"):
            vendor_generate(adapter, batch, use_cache=False)
        with pytest.raises(SiteError, match="stream=True"):
            vendor_generate(adapter, batch, stream=True)
    assert adapter.module.llm(inputs_embeds=embeddings).logits.shape == (1, 3, 120)


# --- the layouts of audio, and bad input ---


def spoken(adapter: Adapter, runs: int) -> dict[str, Any]:
    """One clip of 64 frames, whose vectors stand in one or two runs."""
    count = 32 // adapter.module.config.audio_pool_step
    bounds = [[1, 3], [4, 2 + count]] if runs == 2 else [[1, 1 + count]]
    ids = torch.arange(3, 7 + count)[None]
    for start, stop in bounds:
        ids[0, start:stop] = PLACEHOLDER
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_features": torch.randn(1, 80, 64, generator=torch.Generator().manual_seed(0)),
        "audio_feature_lens": [torch.tensor([64])],
        "audio_bounds": [torch.tensor(bounds)],
    }


@pytest.mark.parametrize("stream_input", [False, True])
@pytest.mark.parametrize("version", ["4.5", "2.6"])
def test_audio_read_second_by_second_stands_in_several_runs(
    version: str, stream_input: bool
) -> None:
    """However the checkpoint is set, and in batches, which the vendor's 4.5 refuses there."""
    adapter = model_adapters.load(minicpmo(version, stream_input=stream_input))
    together = adapter.join([spoken(adapter, 2), spoken(adapter, 1)])
    with adapter.trace(together):
        entering = adapter.embed.save()
    heard = [entering[row][together.mask("audio")[row]] for row in range(2)]
    assert torch.equal(heard[0], heard[1])
    hop = 2 * adapter.module.config.audio_pool_step
    first, second = together.audios[0]
    assert (len(first), first.frames) == (2, (0, 2 * hop))
    assert second.frames == (2 * hop, len(together.audios[1][0]) * hop)
    assert together.audios[1][0].frames == (0, 64)


def test_a_model_without_an_audio_encoder_reads_text_and_images() -> None:
    model = minicpmo(init_audio=False)
    family = model_adapters.families.family_of(model.config)
    prepare(model)
    inputs = example(model, family, ("image",))
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("image", {"pixel_values": None}, "there is no pixel_values"),
        ("image", {"image_bound": None}, "image_bound, a list"),
        ("image", {"image_bound": [torch.tensor([[3, 6]])]}, "will emit 4 tokens"),
        ("image", {"image_bound": [torch.tensor([[2, 6]])]}, "must enclose all placeholders"),
        ("image", {"image_bound": [torch.tensor([[90, 94]])]}, "within its 9 positions"),
        ("image", {"image_bound": [torch.tensor([[3, 5], [5, 7]])]}, "1 image slices"),
        ("image", {"tgt_sizes": [torch.tensor([[3, 3]])]}, "3 by 3 patches"),
        ("image", {"tgt_sizes": []}, "one entry for each of the 1"),
        ("image", {"image_bound": [torch.tensor([[3, 7]])] * 2}, "got 2 entries"),
        ("image", {"image_bound": torch.tensor([[[3, 7]]])}, "got <class 'torch.Tensor'>"),
        ("image", {"pixel_values": torch.ones(1, 3, 14, 84)}, "one entry for each of the 1"),
        ("audio", {"audio_features": None}, "there is no audio_features"),
        ("audio", {"audio_bounds": [torch.tensor([[3, 5]])]}, "will emit"),
        ("audio", {"audio_feature_lens": [torch.tensor([3])]}, "will emit"),
        ("audio", {"audio_feature_lens": [torch.tensor([900])]}, "900 frames"),
        ("audio", {"audio_feature_lens": [torch.tensor([41, 41])]}, "2 clips"),
        ("audio", {"attention_mask": None}, "attention_mask is missing"),
        ("audio", {"pixel_value": [[]]}, "did you mean 'pixel_values'"),
    ],
)
def test_media_that_do_not_fit_are_refused(
    adapter: Adapter,
    encodings: dict[str, dict[str, Any]],
    kind: str,
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        adapter.describe(**{**encodings[kind], **change})


def test_lost_media_and_values_that_are_no_numbers_are_refused(
    adapter: Adapter, encodings: dict[str, dict[str, Any]]
) -> None:
    both, image = encodings["both"], encodings["image"]
    for gone in ("pixel", "audio"):
        names = {"pixel": ("pixel_values", "tgt_sizes", "image_bound")}
        lost = names.get(gone, tuple(name for name in both if name.startswith(gone)))
        with pytest.raises(InputError, match="must enclose all placeholders"):
            adapter.describe(**{n: v for n, v in both.items() if n not in lost})
    ids = {name: image[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(InputError, match="the image was lost"):
        adapter.describe(**ids)
    (start, _) = both["image_bound"][0][0].tolist()
    (_, stop) = both["audio_bounds"][0][0].tolist()
    ids = both["input_ids"].clone()
    ids[0, start:stop] = PLACEHOLDER
    count = both["audio_bounds"][0].diff().item()
    over = [torch.tensor([[start + 1, start + 1 + count]])]
    with pytest.raises(InputError, match=r"overlap|must enclose"):
        adapter.describe(**{**both, "input_ids": ids, "audio_bounds": over})
    pixels = [[torch.full_like(image["pixel_values"][0][0], torch.nan)]]
    with pytest.raises(InputError, match="NaN"):
        adapter.describe(**{**image, "pixel_values": pixels})


def test_the_placeholder_is_read_off_the_tokenizer() -> None:
    model: Any = minicpmo()
    del model.config.regap_interp
    adapter = model_adapters.load(model)
    inputs = example(model, adapter.family, ("image",))
    ids = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert adapter.describe(**ids).modalities == ("text",)
    before = adapter.fingerprint
    prepare(model, Tokenizer())
    assert model.llm.generation_config.eos_token_id == ENDS[0]
    ids["input_ids"] = ids["input_ids"].masked_fill(ids["input_ids"] == 0, PLACEHOLDER)
    with pytest.raises(InputError, match="the image was lost"):
        adapter.describe(**ids)
    assert adapter.fingerprint == before


# --- a checkpoint with code of its own ---

CODE = """
from transformers import AutoProcessor, LogitsWarper
from transformers.models.whisper.modeling_whisper import WHISPER_ATTENTION_CLASSES

from model_adapters.tiny.minicpmo_model import MiniCPMO as Vendor


class MiniCPMO(Vendor):
    def __init__(self, config):
        super().__init__(config)
        self.processor = AutoProcessor.from_pretrained(config._name_or_path)
"""


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_folder_with_its_own_code_loads_if_the_user_says_so(
    vendor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    folder = tmp_path / "checkpoint"
    vendor.config.auto_map = {"AutoModel": "modeling_minicpmo.MiniCPMO"}
    vendor.save_pretrained(folder)
    (folder / "modeling_minicpmo.py").write_text(CODE)
    with pytest.raises(LoadError, match="trust_remote_code"):
        model_adapters.load(folder)
    loaded = model_adapters.load(folder, trust_remote_code=True, dtype=dtype)
    for parameter in vendor.parameters() if dtype else ():
        # Not `.to`, which would round the frequencies of positions too.
        parameter.data = parameter.data.to(torch.bfloat16)
    built = model_adapters.load(vendor)
    inputs = example(vendor, built.family, ("image", "audio"))
    assert loaded.module.config.init_tts is False
    with torch.no_grad():
        assert torch.equal(loaded.module(**inputs).logits, built.module(**inputs).logits)
    assert loaded.fingerprint == built.fingerprint


# --- the user's own checkout ---


@pytest.mark.skipif("MINICPMO_DIR" not in os.environ, reason="MINICPMO_DIR names no checkout")
def test_a_real_checkout_loads_and_is_steered_as_by_a_plain_hook() -> None:
    adapter = model_adapters.load(os.environ["MINICPMO_DIR"], trust_remote_code=True)
    kinds = tuple(medium.kind for medium in adapter.family.media)
    inputs = example(adapter.module, adapter.family, kinds)
    batch = adapter.describe(**inputs)
    vector = 5 * torch.randn(adapter.d_model, generator=torch.Generator().manual_seed(0))
    layer = adapter.n_layers // 2

    def change(states: Tensor) -> Tensor:
        return states if states.shape[1] == 1 else states + vector.to(states)

    def answer() -> Tensor:
        tokens: Tensor = adapter.module.generate(
            **as_processed(batch),
            tokenizer=adapter.tokenizer,
            max_new_tokens=NEW,
            do_sample=False,
            num_beams=1,
        )[1].sequences
        return tokens

    with hooked(adapter.module.get_submodule(f"{adapter.layout.layers}.{layer}"), change):
        expected = answer()
    with ri.Graph(ri.add("resid_post", layer, vector.double())).on(adapter):
        assert torch.equal(answer(), expected)
