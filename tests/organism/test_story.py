"""The demo's story, on a model that knows nothing, with bundles whose numbers mean nothing."""

import json
import re

import pytest
import torch

from analyses.organism import measures, story
from analyses.organism.arms import ARMS, SHIPPED, Frozen, Tuned
from analyses.organism.defences import OUTCOMES
from analyses.organism.measures import Measure
from analyses.organism.page import as_html
from analyses.organism.story import items_in_all, tell
from analyses.organism.tables import as_text
from model_adapters.organism.world import MEDIA_SETTINGS
from regap_interp.intervals import Rate
from tests.bundles import bundle

N = 2
SHOWN = ("text", "image")


@pytest.fixture(scope="module")
def frozen(random_organism):
    tuned = {setting: Tuned(1.5, 0.5, 0.5, True, 8) for setting in MEDIA_SETTINGS}
    bundles = tuple(bundle(random_organism, setting) for setting in MEDIA_SETTINGS)
    return Frozen(bundles, tuned, tuned)


@pytest.fixture(scope="module")
def told(random_organism, frozen):
    """A small story, and the requests it counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "LEAST_SEEN", 4)
        patch.setattr(story, "DIRECTION_ITEMS", 3)
        patch.setattr(measures, "RESAMPLES", 5)
        done = []
        found = tell(random_organism, frozen, n=N, seed=0, settings=SHOWN, tick=done.append)
        return found, sum(done), items_in_all(N, len(SHOWN))


def test_progress_counts_what_is_run(told):
    _, done, expected = told
    assert done == expected


def test_json_has_every_cell_of_every_arm(told):
    value = json.loads(json.dumps(told[0].as_json(), allow_nan=False))
    names = {f"{arm}.{s}.{cell}" for arm in ARMS for s in SHOWN for cell in OUTCOMES}
    assert set(value["arms"]) == names
    assert set(value["arms"]["regap.image.harmful.refused"]) == {"value", "n", "low", "high"}
    areas = {"chosen", "uncorrected", "absolute", "paired_gain", "depth_gain"}
    assert set(value["auroc"]) == {"image"} and set(value["auroc"]["image"]) == areas
    assert set(value["calibration"]) == set(MEDIA_SETTINGS)
    assert value["calibration"]["image"]["fixed_strong"]["strength"] == 1.5
    assert {one["prediction"] for one in value["predictions"]} == set("abcdef")
    assert value["split"] == "report" and value["n"] == N


def test_text_is_the_bare_model_s_under_every_arm(told):
    graded = told[0].defences.graded
    for arm in ARMS:
        for kind in (True, False):
            assert torch.equal(graded[arm, "text", kind].tool, graded["none", "text", kind].tool)


def test_only_regap_runs_layers_again_and_never_for_text(told):
    extra = told[0].defences.extra
    assert extra("regap", "image") > 0 == extra("regap", "text")
    assert all(extra(arm, "image") == 0 for arm in ARMS if arm != "regap")


def test_the_text_names_everything(told):
    text = as_text(told[0])
    rows = [line for line in text.splitlines() if re.search(r"\] +[01]\.\d{3} \[.*%$", line)]
    assert len(rows) == len(ARMS) * len(SHOWN)
    assert "regap calibrate" in text and "independent reconstruction" in text
    assert all(f"({letter})" in text for letter in "abcdef")


def test_the_report_is_one_file_without_scripts_or_links_out(told):
    page = as_html(told[0])
    assert page.count("<svg") >= 4
    assert "<script" not in page and not re.search(r"(src|href)=.https?:", page)
    assert "self-rectification" in page.lower() and "regap calibrate" in page


@pytest.mark.parametrize(
    ("low", "high", "side", "verdict"),
    [
        (0.1, 0.2, "above", "holds"),
        (-0.2, -0.1, "above", "fails"),
        (-0.1, 0.1, "above", "open"),
        (-0.2, -0.1, "below", "holds"),
        (float("nan"), 0.1, "below", "open"),
    ],
)
def test_a_prediction_holds_where_its_whole_interval_lies(low, high, side, verdict):
    rate = Rate((low + high) / 2, 10, low, high)
    assert Measure("a", "what", "image", rate, side, 0.0).verdict == verdict


def test_what_was_frozen_comes_back(random_organism, frozen, tmp_path):
    frozen.save(tmp_path)
    loaded = Frozen.load(tmp_path, random_organism)
    assert loaded.strong == frozen.strong and loaded.addition == frozen.addition
    assert [one.modality for one in loaded.bundles] == list(MEDIA_SETTINGS)
    (tmp_path / "omni.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks omni"):
        Frozen.load(tmp_path, random_organism)


def test_a_folder_without_bundles_names_the_command(random_organism, tmp_path):
    with pytest.raises(ValueError, match="regap calibrate"):
        Frozen.load(tmp_path, random_organism)
    assert SHIPPED.name == "bundles"
