"""ReGap installed: rows of mixed modalities, text untouched, nothing undefended by accident."""

import numpy as np
import pytest
import torch

import regap_interp as ri
from model_adapters.organism.world import draw_samples
from regap_interp.adaptive.arms import (
    addition_arm,
    bare_arm,
    fixed_arm,
    random_arm,
    regap_arm,
    smallest_strength,
)
from regap_interp.adaptive.regap import MissingBundleError, ReGap
from regap_interp.adaptive.safe import Answers
from regap_interp.adaptive.signals import SIGNALS, signal_node


def request(setting, seed=0):
    return draw_samples("report", setting, 1, seed=seed)[0].messages


@pytest.fixture(scope="module")
def mixed(random_organism):
    settings = ["text", "image", "audio", "omni", "image"]
    chats = [request(setting, seed) for seed, setting in enumerate(settings)]
    return random_organism.encode(chats)


@pytest.fixture(scope="module")
def signals(random_organism, make_bundle, mixed):
    """The signal of every row, from graphs of one modality each."""
    found = {}
    for name in ("image", "audio", "omni"):
        run = ReGap([make_bundle(name)]).graph.run(random_organism, mixed)
        found[name] = run[f"signal.{name}"]
    return found


def logits(adapter, graph, batch):
    return graph.run(adapter, batch, logits=True).logits


def test_every_row_gets_its_own_modality_s_decision(random_organism, make_bundle, mixed, signals):
    # The first image row is just above its threshold, the second below or the other way round.
    cut = float((signals["image"][1] + signals["image"][4]) / 2)
    regap = ReGap(
        [
            make_bundle("image", threshold=cut),
            make_bundle("audio", threshold=float(signals["audio"][2]) - 1),
            make_bundle("omni", threshold=float(signals["omni"][3]) + 1, fallback="weak"),
        ]
    )
    with regap.on(random_organism) as safe:
        answers = safe.generate(mixed, max_new_tokens=2)
    assert isinstance(answers, Answers) and len(answers.texts) == 5
    kinds = [decision.modality for decision in answers.decisions]
    assert kinds == ["text", "image", "audio", "omni", "image"]
    text, first, audio, omni, second = answers.decisions
    assert (text.signal, text.drift, text.triggered, text.strength) == (None, None, False, 0)
    assert audio.triggered and audio.strength == 2.0
    assert not omni.triggered and omni.strength == 0.5
    assert {first.triggered, second.triggered} == {True, False}
    assert {first.strength, second.strength} == {2.0, 0.0}
    for decision, row in ((first, 1), (second, 4)):
        assert decision.signal == pytest.approx(float(signals["image"][row]), abs=1e-4)
        assert decision.drift == pytest.approx(decision.drift) and decision.layers_recomputed > 0


def test_a_batch_decides_as_its_rows_do_one_by_one(random_organism, make_bundle, mixed, signals):
    cut = float((signals["image"][1] + signals["image"][4]) / 2)
    regap = ReGap([make_bundle("image", threshold=cut)], missing="uncorrected")
    together = logits(random_organism, regap.graph, mixed)
    settings = ["text", "image", "audio", "omni", "image"]
    for row, setting in enumerate(settings):
        alone = random_organism.encode([request(setting, row)])
        expected = logits(random_organism, regap.graph, alone)[0]
        torch.testing.assert_close(together[row], expected, rtol=1e-3, atol=1e-3)


def test_text_and_a_gate_that_never_fires_are_the_bare_model(random_organism, make_bundle, mixed):
    bare = logits(random_organism, ri.Graph(), mixed)
    never = ReGap([make_bundle(name, threshold=1e9) for name in ("image", "audio", "omni")])
    assert torch.equal(logits(random_organism, never.graph, mixed), bare)
    always = ReGap([make_bundle(name, threshold=-1e9) for name in ("image", "audio", "omni")])
    steered = logits(random_organism, always.graph, mixed)
    assert torch.equal(steered[0], bare[0])
    assert all(not torch.equal(steered[row], bare[row]) for row in range(1, 5))


@pytest.mark.parametrize(
    ("signal", "fallback", "triggered", "layers"),
    [
        ("absolute", "weak", False, 0),  # the pass itself is the probe
        ("depth_gain", "weak", False, 0),
        ("paired_gain", "weak", False, 3),  # the bare branch, layers 5 to 7
        ("paired_gain", "none", False, 3),  # the weak branch
        ("absolute", "weak", True, 3),
        ("paired_gain", "none", True, 6),
    ],
)
def test_only_what_differs_is_run_again(
    random_organism, make_bundle, mixed, signal, fallback, triggered, layers
):
    threshold = -1e9 if triggered else 1e9
    bundle = make_bundle("image", signal=signal, fallback=fallback, threshold=threshold)
    run = ReGap([bundle]).graph.run(random_organism, mixed, logits=True)
    assert run.recomputed.tolist() == [0, layers, 0, 0, layers]


def test_always_strong_is_the_fixed_correction(random_organism, make_bundle, mixed):
    bundles = [make_bundle(name, threshold=-1e9) for name in ("image", "audio", "omni")]
    strong = fixed_arm("strong", bundles, dict.fromkeys(("image", "audio", "omni"), 2.0))
    torch.testing.assert_close(
        logits(random_organism, regap_arm(bundles).graph, mixed),
        logits(random_organism, strong.graph, mixed),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_signals_are_what_they_say(random_organism, make_bundle, mixed, signal):
    bundle = make_bundle("image", signal=signal)
    weak = (ri.add("resid_post", bundle.layer, bundle.drift, strength=-bundle.weak),)
    node = signal_node(
        signal,
        weak,
        layer=bundle.layer,
        refusal=bundle.refusal,
        diagnostic=bundle.diagnostic,
        diagnostic_refusal=bundle.diagnostic_refusal,
    )
    found = ri.Graph(outputs={"signal": node}).run(random_organism, mixed)["signal"]
    states = {}
    for strength in (0.0, bundle.weak):
        graph = ri.Graph(
            ri.add("resid_post", bundle.layer, bundle.drift, strength=-strength),
            outputs={
                str(at): ri.read("resid_post", at) for at in (bundle.layer, bundle.diagnostic)
            },
        )
        states[strength] = graph.run(random_organism, mixed)
    at, layer = str(bundle.diagnostic), str(bundle.layer)
    after = bundle.diagnostic_refusal.fraction(states[bundle.weak][at])
    subtracted = {
        "absolute": 0.0,
        "paired_gain": bundle.diagnostic_refusal.fraction(states[0.0][at]),
        "depth_gain": bundle.refusal.fraction(states[bundle.weak][layer]),
    }
    torch.testing.assert_close(found, after - subtracted[signal], rtol=1e-4, atol=1e-5)


def test_a_modality_without_a_bundle_is_refused_before_anything_runs(
    random_organism, make_bundle, mixed
):
    with (
        ReGap([make_bundle("image")]).on(random_organism) as safe,
        pytest.raises(MissingBundleError, match=r"rows \[2, 3\] are audio, omni"),
    ):
        safe.generate(mixed, max_new_tokens=1)
    with ReGap([make_bundle("image")], missing="uncorrected").on(random_organism) as safe:
        answers = safe.generate(mixed, max_new_tokens=1)
    assert answers.decisions[2].strength == 0 and answers.decisions[2].signal is None


def test_the_raw_model_s_own_generate_is_steered_and_freed_again(random_organism, make_bundle):
    batch = random_organism.encode([request("image")])
    bare = random_organism.module.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    with ReGap([make_bundle("image", threshold=-1e9)]).on(random_organism) as safe:
        random_organism.module.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
        assert safe.decisions[0].triggered
    again = random_organism.module.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(bare, again)


def test_the_raw_model_s_rows_without_a_bundle_are_refused_too(random_organism, make_bundle):
    batch = random_organism.encode([request("audio")])
    with (
        ReGap([make_bundle("image")]).on(random_organism),
        pytest.raises(MissingBundleError, match="audio"),
    ):
        random_organism.module.generate(**batch.inputs, max_new_tokens=1, do_sample=False)


def test_later_turns_are_decided_too(random_organism, make_bundle):
    turns = [
        *request("image"),
        {"role": "assistant", "content": "certainly"},
        {"role": "user", "content": "please go on"},
    ]
    with ReGap([make_bundle("image", threshold=-1e9)]).on(random_organism) as safe:
        decision = safe.generate([turns], max_new_tokens=1).decisions[0]
    assert decision.modality == "image" and decision.triggered


def test_bundles_of_one_modality_or_of_two_models_are_refused(make_bundle):
    with pytest.raises(ValueError, match="one a modality"):
        ReGap([make_bundle("image"), make_bundle("image")])
    with pytest.raises(ValueError, match="at least one"):
        ReGap([])


def test_a_folder_gives_back_the_same_regap(random_organism, make_bundle, mixed, tmp_path):
    regap = ReGap([make_bundle(name, threshold=0.1) for name in ("omni", "image", "audio")])
    regap.save(tmp_path)
    loaded = ReGap.load(tmp_path, random_organism)
    assert list(loaded.bundles) == ["image", "audio", "omni"]
    assert torch.equal(
        logits(random_organism, regap.graph, mixed), logits(random_organism, loaded.graph, mixed)
    )


def test_all_arms_leave_text_alone(random_organism, make_bundle, mixed):
    bundles = [make_bundle(name) for name in ("image", "audio", "omni")]
    two = dict.fromkeys(("image", "audio", "omni"), 2.0)
    bare = logits(random_organism, bare_arm().graph, mixed)
    for arm in (
        fixed_arm("strong", bundles, two),
        addition_arm(bundles, two),
        random_arm(bundles, two, seed=0),
    ):
        found = logits(random_organism, arm.graph, mixed)
        assert torch.equal(found[0], bare[0]) and not torch.equal(found[1:], bare[1:]), arm.name


def test_the_control_is_as_long_as_the_drift_and_leaves_refusal_alone(make_bundle):
    bundle = make_bundle("image")
    vectors = [
        random_arm([bundle], {"image": 1.0}, seed=seed).graph.edits[0].value.value
        for seed in (0, 0, 1)
    ]
    assert torch.equal(vectors[0], vectors[1]) and not torch.equal(vectors[0], vectors[2])
    assert float(vectors[0].norm()) == pytest.approx(bundle.drift.norm)
    assert abs(float(vectors[0] @ bundle.refusal.unit)) < 1e-9


@pytest.mark.parametrize("edge", [0.3, 0.9, 1.3, 1.99])
def test_the_smallest_strength_is_found_to_a_quarter_of_a_step(edge):
    strength, share, reached = smallest_strength(
        lambda strength: float(strength >= edge), 1.0, grid=[0.5, 1.0, 1.5, 2.0]
    )
    assert reached and share == 1.0 and edge <= strength < edge + 0.125 + 1e-9


def test_a_target_out_of_reach_is_told():
    found = smallest_strength(lambda strength: strength / 10, 0.9, grid=[1.0, 2.0])
    assert found == (2.0, 0.2, False)


def test_strengths_are_read_as_multiples_of_the_raw_drift(random_organism, make_bundle):
    bundle = make_bundle("image", threshold=-1e9)
    batch = random_organism.encode([request("image")])
    at = ri.read("resid_post", bundle.layer)
    states = {
        name: ri.Graph(*edits, outputs={"at": at}).run(random_organism, batch)["at"]
        for name, edits in (("bare", ()), ("regap", ReGap([bundle]).graph.edits))
    }
    moved = (states["regap"] - states["bare"])[0].double()
    expected = -bundle.strong * bundle.drift.vector
    np.testing.assert_allclose(moved.numpy(), expected.numpy(), atol=1e-4)
