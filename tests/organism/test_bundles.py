"""The shipped bundles: calibrating again from the same items gives the same choices."""

import pytest

import model_adapters
from analyses.organism.arms import SHIPPED, Frozen
from analyses.organism.calibrating import calibrate_setting
from model_adapters.organism.world import MEDIA_SETTINGS
from regap_interp.adaptive.work import Given


@pytest.fixture(scope="module")
def organism():
    return model_adapters.load("organism")


@pytest.fixture(scope="module")
def frozen(organism):
    return Frozen.load(SHIPPED, organism)


def test_there_is_a_bundle_for_every_medium_with_its_reasons(frozen):
    assert [one.modality for one in frozen.bundles] == list(MEDIA_SETTINGS)
    for bundle in frozen.bundles:
        choices = {"layer", "diagnostic", "weak", "strong", "signal", "threshold", "fallback"}
        assert set(bundle.calibration.reasons) == choices
        assert set(bundle.calibration.roc) == {"paired_gain", "depth_gain", "absolute"}
        assert bundle.calibration.roc[bundle.signal].auroc >= 0.95
        assert frozen.strong[bundle.modality].reached and frozen.addition[bundle.modality].reached


def test_calibrating_again_makes_the_same_choices(organism, frozen, as_users_run_it):
    shipped = frozen.bundle("image")
    # The two long searches are left out: the layer, and the strengths.
    given = Given(layer=shipped.layer, weak=shipped.weak, strong=shipped.strong, fallback="none")
    again = calibrate_setting(organism, "image", given=given, progress=False)
    assert again.calibration.data == shipped.calibration.data
    assert (again.signal, again.diagnostic) == (shipped.signal, shipped.diagnostic)
    assert again.threshold == pytest.approx(shipped.threshold, abs=1e-5)
    assert float(again.drift.unit @ shipped.drift.unit) == pytest.approx(1, abs=1e-9)


def test_a_search_with_few_items_finds_the_same_layer_and_signal(organism, frozen, as_users_run_it):
    shipped = frozen.bundle("audio")
    few = calibrate_setting(
        organism,
        "audio",
        n=40,
        n_direction=40,
        given=Given(fallback="none", strong=1.5),
        progress=False,
    )
    assert (few.layer, few.signal) == (shipped.layer, shipped.signal)
