"""Interrupted sweeps go on where they stopped, from memory or from a file."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.patching import (
    FromLogits,
    LogitDifference,
    PatchResult,
    SweepInterrupted,
    patch_sweep,
    running,
)
from model_adapters import Adapter

METRIC = LogitDifference(right=7, wrong=20)
CELLS: Any = dict(site="resid_pre", metric=METRIC, positions=range(-6, 0), memory=220_000)


class InterruptAfter:
    """A progress function that presses Ctrl-C once."""

    def __init__(self, cells: int) -> None:
        self.cells, self.seen = cells, 0

    def __call__(self, done: int, total: int) -> None:
        self.seen += 1
        if done >= self.cells:
            self.cells = total + 1
            raise KeyboardInterrupt


def test_from_memory(adapter: Adapter, mixed: Any) -> None:
    whole = patch_sweep(adapter, *mixed, **CELLS)
    with pytest.raises(SweepInterrupted) as caught:
        patch_sweep(adapter, *mixed, **CELLS, progress=InterruptAfter(30))
    partial = caught.value.partial
    done = ~partial.raw.isnan()
    assert 30 <= int(done.sum()) < partial.raw.numel() and not partial.complete
    assert "cells missing" in repr(partial)
    torch.testing.assert_close(partial.raw[done], whole.raw[done])
    rest = patch_sweep(adapter, *mixed, **CELLS, resume=partial)
    torch.testing.assert_close(rest.raw, whole.raw)
    assert sum(rest.passes.values()) == int((~done).sum())


def test_from_a_file(adapter: Adapter, mixed: Any, tmp_path: Path) -> None:
    file = tmp_path / "sweep.safetensors"
    with pytest.raises(KeyboardInterrupt):
        patch_sweep(adapter, *mixed, **CELLS, progress=InterruptAfter(40), checkpoint=file)
    kept = PatchResult.load(file)
    assert int((~kept.raw.isnan()).sum()) >= 40
    count = InterruptAfter(10**6)
    result = patch_sweep(adapter, *mixed, **CELLS, checkpoint=file, progress=count)
    assert result.complete
    again = patch_sweep(adapter, *mixed, **CELLS, checkpoint=file)
    assert torch.equal(again.raw, result.raw) and again.passes == {
        "resumed": 0,
        "whole": 0,
        "unchanged": 0,
    }


def test_another_sweep_is_refused(adapter: Adapter, mixed: Any) -> None:
    result = patch_sweep(adapter, *mixed, **CELLS)
    for change in (
        {"site": "resid_post"},
        {"positions": range(-5, 0)},
        {"metric": LogitDifference(8, 20)},
        {"mode": "noise"},
    ):
        with pytest.raises(ValueError, match="holds another sweep"):
            patch_sweep(adapter, *mixed, **{**CELLS, **change}, resume=result)
    with pytest.raises(ValueError, match=r"holds another sweep \(of"):
        patch_sweep(adapter, *reversed(mixed), **CELLS, resume=result)


def test_a_checkpoint_of_another_kind_is_refused(
    adapter: Adapter, mixed: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"end the name in \.safetensors"):
        patch_sweep(adapter, *mixed, **CELLS, checkpoint=tmp_path / "sweep.png")
    assert not list(tmp_path.iterdir())


def test_no_hook_is_left_after_an_interrupt(adapter: Adapter, mixed: Any) -> None:
    def hooks() -> int:
        return sum(
            len(part._forward_hooks) + len(part._forward_pre_hooks)
            for part in adapter.module.modules()
        )

    before = hooks()
    with pytest.raises(KeyboardInterrupt):
        patch_sweep(adapter, *mixed, **CELLS, progress=InterruptAfter(5))
    assert hooks() == before


def test_a_part_is_not_taken_for_the_whole(adapter: Adapter, mixed: Any) -> None:
    cells: Any = {**CELLS, "positions": ["last"]}
    whole = patch_sweep(adapter, *mixed, **cells)
    with pytest.raises(ValueError, match="is a part of the sweep"):
        patch_sweep(adapter, *mixed, **cells, resume=whole.at(position="last"))


def test_another_function_of_the_same_name_is_refused(
    adapter: Adapter, mixed: Any, tmp_path: Path
) -> None:
    cells: Any = {**CELLS, "positions": ["last"]}
    file = tmp_path / "sweep.safetensors"

    def sweep(token: int) -> PatchResult:
        metric = FromLogits(lambda logits: logits[:, token])
        return patch_sweep(adapter, *mixed, **{**cells, "metric": metric}, checkpoint=file)

    first = sweep(3)
    assert torch.equal(sweep(3).raw, first.raw)
    with pytest.raises(ValueError, match="unpatched runs have another"):
        sweep(8)


def test_a_folder_that_is_not_there_is_refused_first(
    adapter: Adapter, mixed: Any, tmp_path: Path
) -> None:
    runs: list[int] = []
    handle = adapter.hook("resid_post", 0, lambda value: runs.append(len(value)))
    try:
        with pytest.raises(ValueError, match="no such folder"):
            patch_sweep(adapter, *mixed, **CELLS, checkpoint=tmp_path / "no" / "a.safetensors")
    finally:
        handle.remove()
    assert not runs


def test_whatever_ends_a_sweep_leaves_what_is_finished(
    adapter: Adapter, mixed: Any, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.safetensors"

    def fail(done: int, total: int) -> None:
        if done >= 30:
            raise MemoryError

    with pytest.raises(MemoryError):
        patch_sweep(adapter, *mixed, **CELLS, progress=fail, checkpoint=file)
    assert int((~PatchResult.load(file).raw.isnan()).sum()) >= 30


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_while_the_end_is_written_loses_nothing(
    adapter: Adapter, mixed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = PatchResult.save

    def interrupted(self: PatchResult, path: Any) -> Path:
        signal.raise_signal(signal.SIGINT)
        return save(self, path)

    monkeypatch.setattr(PatchResult, "save", interrupted)
    monkeypatch.setattr(running, "_SAVE_EVERY", 1e9)
    with pytest.raises(SweepInterrupted) as caught:
        patch_sweep(adapter, *mixed, **CELLS, checkpoint=tmp_path / "sweep.safetensors")
    assert caught.value.partial.complete
    assert PatchResult.load(tmp_path / "sweep.safetensors").complete
