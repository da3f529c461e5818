"""Rows of a batch, and requests of several invokes, are the requests run alone."""

from typing import Any, Literal

import nnsight
import numpy as np
import pytest
import torch

from model_adapters import Adapter, InputError, SiteError

Side = Literal["left", "right"]


def alone(adapter: Adapter, request: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals and logits of a request run by itself, in a bare forward of the model."""
    batch = adapter.encode([request])
    seen = []
    layer = adapter.module.model.language_model.layers[2]
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(output.clone()))
    with torch.no_grad():
        logits = adapter.module(**batch.inputs).logits
    handle.remove()
    return seen[0][0], logits[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_equal_solo_runs(
    adapter: Adapter, requests_of_every_kind: Any, side: Side
) -> None:
    batch = adapter.encode(requests_of_every_kind, padding_side=side)
    with adapter.trace(batch):
        residual = adapter.resid_post[2].save()
        logits = adapter.logits.save()
    for row, request in enumerate(requests_of_every_kind):
        solo_residual, solo_logits = alone(adapter, request)
        mask = batch.prompt_mask[row]
        torch.testing.assert_close(residual[row, mask], solo_residual, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits[row, mask], solo_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_equal_solo_runs_on_the_organisms_architecture(
    random_organism: Adapter, side: Side
) -> None:
    """With its own processor, every medium in one batch; 1e-5 relative to the largest value."""
    media = np.random.default_rng(0)
    picture, other = media.integers(0, 255, (2, 32, 64, 3)).astype(np.uint8)
    parts: list[list[dict[str, Any]]] = [
        [],
        [{"type": "image", "image": picture}],
        [{"type": "audio", "audio": media.uniform(-0.5, 0.5, 4800).astype(np.float32)}],
        [{"type": "video", "video": [picture, other]}],
        [{"type": "image", "image": other}, {"type": "audio", "audio": np.zeros(8000, "f4")}],
    ]
    words = {"type": "text", "text": "please name the"}
    requests = [[{"role": "user", "content": [words] * n + p}] for n, p in enumerate(parts, 1)]
    batch = random_organism.encode(requests, padding_side=side)
    assert len(set(batch.prompt_mask.sum(1).tolist())) > 3, "rows should be padded"
    layer = random_organism.module.model.language_model.layers[-1]
    seen = []
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(output))
    with random_organism.trace(batch):
        logits = random_organism.logits.save()
    for row, request in enumerate(requests):
        with torch.no_grad():
            alone = random_organism.module(**random_organism.encode([request]).inputs).logits[0]
        mask = batch.prompt_mask[row]
        for found, expected in ((logits, alone), (seen[0], seen[-1][0])):
            largest = float(expected.abs().max())
            torch.testing.assert_close(found[row, mask], expected, atol=1e-5 * largest, rtol=0)
    handle.remove()


def test_the_last_token_is_the_same_for_both_padding_sides(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    last = {}
    sides: tuple[Side, Side] = ("left", "right")
    for side in sides:
        batch = adapter.encode(requests_of_every_kind, padding_side=side)
        with adapter.trace(batch):
            logits = adapter.logits.save()
        last[side] = logits[torch.arange(len(batch)), batch.last]
    torch.testing.assert_close(last["left"], last["right"], atol=1e-5, rtol=0)


def test_invokes_equal_solo_runs_and_keep_their_own_positions(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    batches = [adapter.encode([request]) for request in requests_of_every_kind]
    residuals, logits, lasts = [], [], []
    with adapter.trace() as tracer:
        for batch in batches:
            with tracer.invoke(batch):
                residual = adapter.resid_post[2]
                residuals.append(residual)
                lasts.append(residual[torch.arange(1), batch.last])
                logits.append(adapter.logits)
    for batch, residual, logit, last, request in zip(
        batches, residuals, logits, lasts, requests_of_every_kind, strict=True
    ):
        solo_residual, solo_logits = alone(adapter, request)
        assert residual.shape[:2] == batch.roles.shape
        torch.testing.assert_close(residual[0], solo_residual, atol=1e-5, rtol=0)
        torch.testing.assert_close(logit[0], solo_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(last[0], solo_residual[-1], atol=1e-5, rtol=0)


def test_invokes_may_hold_batches_of_either_padding_side_and_ready_encodings(
    adapter: Adapter, requests_of_every_kind: Any
) -> None:
    text, image, audio, video, mixed = requests_of_every_kind
    left = adapter.encode([text, image])
    right = adapter.encode([audio, mixed], padding_side="right")
    ready = adapter.encode([video]).inputs
    with adapter.trace() as tracer:
        with tracer.invoke(left):
            first = adapter.logits.save()
        with tracer.invoke(right):
            second = adapter.logits.save()
        with tracer.invoke(**ready):
            third = adapter.logits.save()
        with tracer.invoke():
            everything = adapter.logits.save()
    assert len(everything) == 5
    found = [
        first[0, left.prompt_mask[0]],
        first[1, left.prompt_mask[1]],
        second[0, right.prompt_mask[0]],
        third[0],
        second[1, right.prompt_mask[1]],
    ]
    for logits, request in zip(found, (text, image, audio, video, mixed), strict=True):
        torch.testing.assert_close(logits, alone(adapter, request)[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "site", ["resid_pre", "z", "result", "attn_out", "resid_mid", "mlp_out", "resid_post"]
)
def test_an_edit_in_one_invoke_stays_in_its_rows(
    adapter: Adapter, requests_of_every_kind: Any, site: str
) -> None:
    text, image = (adapter.encode([request]) for request in requests_of_every_kind[:2])
    with adapter.trace(image):
        sites = getattr(adapter, site)
        sites[1] = sites[1] * 2
        edited_alone = adapter.logits.save()
    with adapter.trace(text):
        plain_alone = adapter.logits.save()
    with adapter.trace() as tracer:
        with tracer.invoke(text):
            plain = adapter.logits.save()
        with tracer.invoke(image):
            sites = getattr(adapter, site)
            sites[1] = sites[1] * 2
            edited = adapter.logits.save()
    torch.testing.assert_close(plain, plain_alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(edited, edited_alone, atol=1e-5, rtol=0)


def test_a_value_of_one_invoke_patched_into_another(adapter: Adapter, parts: Any) -> None:
    clean = adapter.encode([parts.user("w5 w6 w7")])
    other = adapter.encode([parts.user("w8 w9 w10")])
    with adapter.trace(clean):
        wanted = adapter.resid_post[1].save()
        target = adapter.logits.save()
    with adapter.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(clean):
            donor = adapter.resid_post[1]
            barrier()
        with tracer.invoke(other):
            barrier()
            adapter.resid_post[1] = donor
            patched = adapter.logits.save()
    assert wanted.shape == (*clean.roles.shape, adapter.d_model)
    torch.testing.assert_close(patched, target, atol=1e-5, rtol=0)


def test_packed_media_are_not_cut_into_rows(adapter: Adapter, parts: Any) -> None:
    # Two image tokens and two rows: cutting by rows would look right and be wrong.
    text, image = (
        adapter.encode([parts.user("w5")]),
        adapter.encode([parts.user(parts.picture(2, 4))]),
    )
    with adapter.trace() as tracer:
        with tracer.invoke(text):
            adapter.resid_post[0].save()
        with tracer.invoke(image):
            adapter.resid_post[0].save()
        with tracer.invoke():
            packed = adapter.model.visual.merger.output.save()
    assert packed.shape == (2, adapter.d_model)
    with (
        pytest.raises(SiteError, match=r"visual\.merger\.output holds the media of all requests"),
        adapter.trace() as tracer,
    ):
        with tracer.invoke(text):
            adapter.resid_post[0].save()
        with tracer.invoke(image):
            adapter.model.visual.merger.output.save()


def test_inputs_nobody_said_how_to_batch_are_refused(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5")])
    embeds = torch.zeros(1, 2, adapter.d_model)
    with (
        pytest.raises(InputError, match="'inputs_embeds' cannot be batched"),
        adapter.trace() as tracer,
    ):
        with tracer.invoke(batch, inputs_embeds=embeds):
            adapter.resid_post[0].save()
        with tracer.invoke(batch, inputs_embeds=embeds):
            adapter.resid_post[0].save()


def test_nnsights_own_tools_work_beside_the_sites(adapter: Adapter, parts: Any) -> None:
    batch = adapter.encode([parts.user("w5", parts.picture())])
    with adapter.trace(batch) as tracer:
        visual = adapter.model.visual.output.pooler_output.save()
        early = adapter.resid_post[1].save()
        tracer.stop()
    assert len(torch.cat(list(visual)) if isinstance(visual, tuple) else visual) == 6
    with adapter.trace(batch) as tracer:
        cache = tracer.cache(modules=[adapter.model.language_model.layers[1]])
    assert torch.equal(cache[adapter.model.language_model.layers[1].path].output, early)
    with adapter.session():
        with adapter.trace(batch):
            first = adapter.resid_post[1]
        with adapter.trace(batch):
            second = nnsight.save(adapter.resid_post[1] - first)
    assert not second.any()
