"""Statistics, tables, pictures and files of results."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch

from analyses.patching import Agreement, Axis, PatchResult, agreement
from analyses.patching.statistics import spearman
from regap_interp.artefact.errors import ArtefactError

LAYERS = Axis("layer", ("0", "1", "2"))


def make(n: int = 5, seed: int = 0, **changes: Any) -> PatchResult:
    draw = torch.Generator().manual_seed(seed)
    raw = torch.randn(n, 3, 2, generator=draw, dtype=torch.float64)
    corrupted = torch.randn(n, generator=draw, dtype=torch.float64)
    given: dict[str, Any] = dict(
        raw=raw,
        axes=(LAYERS, Axis("position", ("last", "image <- 2:4"))),
        corrupted=corrupted,
        clean=corrupted + 2 + torch.rand(n, generator=draw, dtype=torch.float64),
        site="resid_pre",
        metric="logit difference 1 - 2",
        mode="denoise",
        method="exact",
        model="tiny",
        recipe="0" * 64,
        seed=3,
        passes={"resumed": 6 * n},
    )
    return PatchResult(**{**given, **changes})


def test_values_are_a_ratio_of_means() -> None:
    result = make()
    for layer, position in itertools.product(range(3), range(2)):
        moved = (result.raw[:, layer, position] - result.corrupted).mean()
        wanted = moved / (result.clean.mean() - result.corrupted.mean())
        assert float(result.values[layer, position]) == pytest.approx(float(wanted))
    assert make(mode="noise").base.equal(make().clean)
    same = make(clean=make().corrupted)
    assert same.values.isnan().all()


def test_intervals_resample_items() -> None:
    result = make(n=8)
    low, high = result.interval(resamples=4000)
    assert (low <= result.values).all() and (result.values <= high).all()
    drawn = torch.randint(8, (4000, 8), generator=torch.Generator().manual_seed(11))
    ratios = [
        float(
            (result.raw[d, 1, 0] - result.corrupted[d]).mean()
            / (result.clean[d] - result.corrupted[d]).mean()
        )
        for d in drawn
    ]
    ends = torch.quantile(torch.tensor(ratios), torch.tensor([0.025, 0.975]))
    torch.testing.assert_close(torch.stack([low, high])[:, 1, 0].float(), ends, atol=0.03, rtol=0)
    narrow = result.interval(resamples=4000, confidence=0.5)
    assert (narrow[1] - narrow[0] < high - low).all()
    again = result.interval(resamples=4000)
    assert torch.equal(again[0], low)
    with pytest.raises(ValueError, match="at least two; the sweep has 1"):
        make(n=1).interval()


def test_p_values_count_sign_flips() -> None:
    result = make(n=6)
    found = result.p_values()
    change = result.change[:, 2, 1]
    means = [
        abs(float((change * torch.tensor(signs)).mean()))
        for signs in itertools.product((1.0, -1.0), repeat=6)
    ]
    real = abs(float(change.mean()))
    wanted = sum(one >= real * (1 - 1e-9) for one in means) / len(means)
    assert float(found[2, 1]) == pytest.approx(wanted)
    drawn = make(n=14, seed=4).p_values(permutations=2000)
    exact = make(n=14, seed=4).p_values(permutations=2**14)
    torch.testing.assert_close(drawn, exact, atol=0.05, rtol=0)
    corrected = result.p_values(corrected=True)
    assert (corrected >= found - 1e-12).all() and (corrected <= 1).all()
    strong = make(n=8, raw=make(n=8).raw * 0.01 + make(n=8).clean[:, None, None])
    assert float(strong.p_values().max()) == pytest.approx(2 / 2**8)


def test_a_correction_keeps_the_share_of_false_findings() -> None:
    """Of sweeps without any effect, about one in twenty finds something."""
    found = []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(9, 3, 2, generator=draw, dtype=torch.float64)
        result = make(n=9, raw=noise + make(n=9).corrupted[:, None, None])
        found.append(float(result.p_values(corrected=True).min()) <= 0.05)
    assert sum(found) <= 9


def test_spearman_agrees_with_scipy() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randint(6, (2, 40), generator=draw).double()
    assert spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other).statistic)
    assert spearman(one, torch.ones(40)) != spearman(one, torch.ones(40))


def test_agreement_is_over_common_cells() -> None:
    exact, other = make(seed=1), make(seed=2, corrupted=make(seed=1).corrupted)
    part = dataclasses.replace(exact, raw=exact.raw.clone())
    part.raw[:, 0] = torch.nan
    found = agreement(part, other)
    a, b = exact.change.mean(0)[1:].flatten(), other.change.mean(0)[1:].flatten()
    assert found.n == 4
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    gap = float((exact.clean - exact.corrupted).mean())
    assert found.largest == pytest.approx(float((a - b).abs().max()) / gap)
    with pytest.raises(ValueError, match="different cells"):
        agreement(exact, exact.at(layer=1))


def test_parts() -> None:
    result = make()
    part = result.at(position="last")
    assert torch.equal(part.raw, result.raw[:, :, 0]) and len(part.axes) == 1
    assert result.at(position="last", layer=2).values.shape == ()
    with pytest.raises(ValueError, match="no position 'first'"):
        result.at(position="first")
    with pytest.raises(ValueError, match="no axis 'head'"):
        result.at(head=0)


def test_rows_are_items() -> None:
    result = make(n=2)
    rows = result.rows()
    assert len(rows) == 12
    assert rows[3] == {
        "layer": "0",
        "position": "image <- 2:4",
        "item": 1,
        "metric": float(result.raw[1, 0, 1]),
        "change": float(result.change[1, 0, 1]),
        "corrupted": float(result.corrupted[1]),
        "clean": float(result.clean[1]),
    }


def test_a_frame_has_a_row_for_each_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    result = make()
    frame = result.to_frame()
    numbers = ["effect", "low", "high", "change", "p", "p_corrected", "n"]
    assert list(frame.columns) == ["layer", "position", *numbers]
    assert list(frame["position"]) == ["last", "image <- 2:4"] * 3
    expected = [
        result.values,
        *result.interval(),
        result.change.mean(0),
        result.p_values(),
        result.p_values(corrected=True),
    ]
    for name, numbers_of_cells in zip(numbers, expected, strict=False):
        assert list(frame[name]) == numbers_of_cells.flatten().tolist()
    alone = make(n=1).to_frame()
    assert alone[["low", "high", "p", "p_corrected"]].isna().all(axis=None)
    assert alone[["effect", "change"]].notna().all(axis=None)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match=r"rows\(\) does not"):
        result.to_frame()


def test_as_transformer_lens_has_it() -> None:
    pytest.importorskip("transformer_lens")
    result = make()
    theirs = result.to_transformer_lens()
    assert theirs.axis_names == ["layer", "pos"] and len(theirs.index_df) == 6
    torch.testing.assert_close(theirs.mean(), result.raw.mean(0))
    torch.testing.assert_close(theirs.effect(), result.change.movedim(0, -1))


def test_files(tmp_path: Path) -> None:
    raw = make().raw.clone()
    raw[0, 1] = torch.nan
    result = make(raw=raw, notes=("whole passes: why",), agreement=Agreement(float("nan"), 0.25, 4))
    result.save(tmp_path / "one.safetensors")
    again = PatchResult.load(tmp_path / "one.safetensors")
    assert torch.equal(again.raw.nan_to_num(99), raw.nan_to_num(99))
    for field in dataclasses.fields(result):
        if field.name not in ("raw", "corrupted", "clean", "agreement"):
            assert getattr(again, field.name) == getattr(result, field.name)
    assert again.agreement is not None and again.agreement.spearman != again.agreement.spearman
    assert again.agreement.largest == 0.25
    part = result.at(position="last")
    assert PatchResult.load(part.save(tmp_path / "part.safetensors")).part == ("position last",)
    table = part.save(tmp_path / "part.csv").read_text()
    assert table.splitlines()[0].startswith("layer,effect,low,high")
    (tmp_path / "two.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtefactError):
        PatchResult.load(tmp_path / "two.safetensors")


def test_one_line() -> None:
    line = repr(make(agreement=Agreement(0.912, 0.1, 20)))
    assert "\n" not in line
    assert line.startswith("<PatchResult exact denoise of resid_pre, 3 layer x 2 position, n=5")
    assert "Spearman 0.91 with 20 real patches" in line


def test_a_ratio_to_an_unsettled_difference_has_no_interval() -> None:
    for clean in ((1.0, -1.0), (1.0, -0.9), (2.0, -0.1, -0.1, -0.1)):
        n = len(clean)
        result = make(n=n, corrupted=torch.zeros(n).double(), clean=torch.tensor(clean).double())
        low, high = result.interval()
        assert low.isnan().all() and high.isnan().all() and low.shape == result.values.shape
    # Of many resamples none is on the other side.
    assert make(n=4).interval()[0].isfinite().all()


def test_no_p_value_is_zero() -> None:
    """Among drawn flips the real signs are counted in."""
    strong = make(n=40, raw=make(n=40).raw * 0 + make(n=40).clean[:, None, None])
    assert strong.p_values(permutations=99).unique().tolist() == [1 / 100]
    assert strong.p_values(permutations=99, corrected=True).unique().tolist() == [1 / 100]
