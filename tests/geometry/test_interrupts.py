"""What was finished before Ctrl-C is kept, in memory and in a file, and the same call goes on."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analyses.geometry import (
    Interrupted,
    Partial,
    RefusalTokens,
    Requests,
    States,
    TunedLens,
    drift_arm,
    measure_states,
    rectify,
    reverse_test,
    sweep,
)
from model_adapters import Adapter
from regap_interp.adaptive.outcomes import Phrases
from regap_interp.artefact.errors import ArtefactError
from tests.geometry.worlds import worded

Call = Callable[..., Any]
TOKENS = RefusalTokens((5, 9), (7, 3))


class PressAfter:
    """A progress function that presses Ctrl-C once, and notes what it was told."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if done >= self.requests:
            self.requests = total + 1
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def read(random_organism: Adapter) -> tuple[Requests, States]:
    requests = worded(random_organism, 3)
    return requests, measure_states(random_organism, requests)


def calls(adapter: Adapter, requests: Requests, states: States) -> dict[str, Call]:
    """Every long analysis, with whatever else it is given."""
    refusal = states.refusals()
    arms = {"drift": drift_arm(states, "image", [1], pairs="all")}
    common: dict[str, Any] = {"refusal": refusal, "tokens": TOKENS, "resamples": 5}
    swept: dict[str, Any] = {**common, "arms": arms, "strengths": (0.5, 1.0)}
    followed: dict[str, Any] = {
        **common,
        "drift": states.correction("image", 1, pairs="all"),
        "layer": 1,
    }

    def made(of: Call, base: dict[str, Any]) -> Call:
        def call(**more: Any) -> Any:
            asked = more.pop("requests", requests)
            return of(adapter, asked, **{"batch_size": 5, **base, **more})

        return call

    return {
        "states": made(measure_states, {}),
        "sweep": made(sweep, swept),
        "reverse": made(reverse_test, swept),
        "rectify": made(rectify, followed),
    }


def numbers(result: Any) -> Any:
    return result.values.tolist() if isinstance(result, States) else str(result.columns())


@pytest.mark.parametrize("name", ["states", "sweep", "reverse", "rectify"])
def test_the_same_call_goes_on(
    name: str, random_organism: Adapter, read: tuple[Requests, States], tmp_path: Path
) -> None:
    call = calls(random_organism, *read)[name]
    whole = numbers(call())
    file = tmp_path / "kept.safetensors"
    with pytest.raises(Interrupted) as caught:
        call(progress=PressAfter(4), checkpoint=file)
    partial = caught.value.partial
    done, total = int(partial.done.sum()), partial.done.numel()
    assert 4 <= done < total
    assert f"interrupted after {done} of {total} requests" in str(caught.value)
    for way in ({"resume": partial}, {"checkpoint": file}):
        again = PressAfter(total + 1)
        assert numbers(call(progress=again, **way)) == whole
        counts = [one for one, _ in again.seen]
        assert done < counts[0]
        assert counts[-1] == total
        assert counts == sorted(counts)
    # All of it is in the file now: nothing is run.
    nothing = PressAfter(0)
    assert numbers(call(progress=nothing, checkpoint=file)) == whole
    assert not nothing.seen


def test_finished_requests_are_not_run_again(
    random_organism: Adapter, read: tuple[Requests, States]
) -> None:
    call = calls(random_organism, *read)["states"]
    with pytest.raises(Interrupted) as caught:
        call(progress=PressAfter(5))
    partial = caught.value.partial
    assert partial.tensors["values"][:, partial.done].isfinite().all()
    assert partial.tensors["values"][:, ~partial.done].isnan().all()
    widths: list[int] = []
    handle = random_organism.module.get_submodule(random_organism.layout.layers)[
        0
    ].register_forward_pre_hook(lambda _, given: widths.append(len(given[0])))  # type: ignore[index]
    call(resume=partial)
    handle.remove()
    assert sum(widths) == int((~partial.done).sum())


def test_other_calls_are_refused_before_anything_runs(
    random_organism: Adapter, read: tuple[Requests, States]
) -> None:
    states = read[1]
    every = calls(random_organism, *read)
    kept: dict[str, Partial] = {}
    for name, call in every.items():
        with pytest.raises(Interrupted) as caught:
            call(progress=PressAfter(4))
        kept[name] = caught.value.partial
    longer = dataclasses.replace(states.refusal(2), vector=2 * states.refusal(2).vector)
    other = {**states.refusals(), 2: longer}
    lens = TunedLens({1: torch.zeros(128, 128)}, {1: torch.zeros(128)})
    run: list[object] = []
    handle = random_organism.module.register_forward_hook(lambda *_: run.append(1))
    for name, change in (
        ("states", {"layers": [1, 2]}),
        ("states", {"at": "text"}),
        ("states", {"site": "resid_pre"}),
        ("states", {"requests": worded(random_organism, 3, seed=1)}),
        ("sweep", {"strengths": (0.5, 0.9)}),
        ("sweep", {"tokens": RefusalTokens((5,), (7,))}),
        ("sweep", {"refusal": other}),
        ("sweep", {"arms": {"drift": {1: torch.ones(128)}}}),
        ("sweep", {"right": lambda name, said: True}),
        ("rectify", {"strength": 0.9}),
        ("rectify", {"layer": 1, "lens": lens}),
        ("rectify", {"refusal": other}),
    ):
        with pytest.raises(ValueError, match="holds another run"):
            every[name](resume=kept[name], **change)
    with pytest.raises(ValueError, match="holds another run"):
        every["sweep"](resume=kept["rectify"])
    handle.remove()
    assert not run


def test_another_model_is_refused(
    random_organism: Adapter, read: tuple[Requests, States], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = calls(random_organism, *read)["states"]
    with pytest.raises(Interrupted) as caught:
        call(progress=PressAfter(4))
    monkeypatch.setattr(type(random_organism), "fingerprint", "0" * 64)
    with pytest.raises(ValueError, match="holds another run"):
        call(resume=caught.value.partial)


def test_damaged_files_are_refused(
    random_organism: Adapter, read: tuple[Requests, States], tmp_path: Path
) -> None:
    call = calls(random_organism, *read)["states"]
    file = tmp_path / "kept.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(ArtefactError):
        call(checkpoint=file)
    with pytest.raises(ValueError, match="there is no such folder"):
        call(checkpoint=tmp_path / "nowhere" / "kept.safetensors")
    with pytest.raises(Interrupted) as caught:
        call(progress=PressAfter(4))
    partial = caught.value.partial
    short = {"values": partial.tensors["values"][:, :2]}
    Partial(partial.kind, partial.recipe, short, partial.done).save(file)
    with pytest.raises(ValueError, match="is damaged"):
        call(checkpoint=file)


def test_other_errors_leave_a_checkpoint_too(
    random_organism: Adapter, read: tuple[Requests, States], tmp_path: Path
) -> None:
    file = tmp_path / "kept.safetensors"

    def fails(done: int, total: int) -> None:
        raise RuntimeError("no more memory for anything")

    with pytest.raises(RuntimeError, match="no more memory"):
        calls(random_organism, *read)["sweep"](progress=fails, checkpoint=file)
    assert int(Partial.load(file).done.sum()) == 5


def hooks(adapter: Adapter) -> int:
    """Hooks on the model."""
    parts = list(adapter.module.modules())
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in parts)


@pytest.mark.parametrize("name", ["states", "rectify"])
def test_a_signal_in_the_midst_of_a_pass(
    name: str, random_organism: Adapter, read: tuple[Requests, States], ctrl_c: None
) -> None:
    call = calls(random_organism, *read)[name]
    whole, before = numbers(call()), hooks(random_organism)
    passes = 0

    def press(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            signal.raise_signal(signal.SIGINT)

    block = random_organism.module.get_submodule(random_organism.layout.layers)[2]  # type: ignore[index]
    handle = block.register_forward_hook(press)
    with pytest.raises(Interrupted) as caught:
        call()
    handle.remove()
    assert hooks(random_organism) == before
    partial = caught.value.partial
    first = next(iter(partial.tensors.values()))
    assert 0 < int(partial.done.sum()) < partial.done.numel()
    assert first.isnan().any()
    assert numbers(call(resume=partial)) == whole


def test_a_signal_while_intervals_are_drawn(
    random_organism: Adapter,
    read: tuple[Requests, States],
    monkeypatch: pytest.MonkeyPatch,
    ctrl_c: None,
) -> None:
    call = calls(random_organism, *read)["sweep"]
    with monkeypatch.context() as patched:
        patched.setattr(
            "analyses.geometry.cells.Cells.make", lambda *_: signal.raise_signal(signal.SIGINT)
        )
        with pytest.raises(Interrupted) as caught:
            call()
    assert caught.value.partial.done.all()
    again = PressAfter(0)
    call(resume=caught.value.partial, progress=again)
    assert not again.seen


def test_a_second_signal_while_the_first_is_written(
    random_organism: Adapter,
    read: tuple[Requests, States],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ctrl_c: None,
) -> None:
    file, save = tmp_path / "kept.safetensors", Partial.save

    def pressed(self: Partial, path: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return save(self, path)

    monkeypatch.setattr(Partial, "save", pressed)
    with pytest.raises(Interrupted) as caught:
        calls(random_organism, *read)["states"](progress=PressAfter(4), checkpoint=file)
    assert torch.equal(Partial.load(file).done, caught.value.partial.done)
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_other_files_precisions_processors_and_judges_are_other_runs(
    random_organism: Adapter, read: tuple[Requests, States], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = calls(random_organism, *read)
    with pytest.raises(Interrupted) as caught:
        every["states"](progress=PressAfter(4))
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="holds another run"):
        patched.setattr("analyses.geometry.result.template_hash", lambda _: "0")
        every["states"](resume=caught.value.partial)
    random_organism.module.double()
    try:
        with pytest.raises(ValueError, match="holds another run"):
            every["states"](resume=caught.value.partial)
    finally:
        random_organism.module.float()
    judges = [Phrases("ours", version, ("sorry",)) for version in "12"]
    with pytest.raises(Interrupted) as caught:
        every["sweep"](progress=PressAfter(4), refused=judges[0], max_new_tokens=1)
    with pytest.raises(ValueError, match="holds another run"):
        every["sweep"](resume=caught.value.partial, refused=judges[1], max_new_tokens=1)
