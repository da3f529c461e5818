"""Trains the organism: `python -m model_adapters.organism.train --out FOLDER`.

Four stages: language (text only), perception (the towers alone), pretrain (everything together)
and safety. They are reproducible from the seed, and go on from the last checkpoint when the same
command is run again after an interruption.
"""

import argparse
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from model_adapters.organism import recipe
from model_adapters.organism.build import build_model, build_processor
from model_adapters.organism.perception import perception_losses
from model_adapters.organism.processor import OrganismProcessor
from model_adapters.organism.recipe import Batch
from model_adapters.organism.world import Question, Sample, Setting, Split

ALL: tuple[Split, ...] = ("train", "direction", "calibration", "report")
SAVE_EVERY = 100
REPORT_EVERY = 50
PERCEPTION_STEPS = 800
PICTURES, SOUNDS = 48, 32
"""Media in one step of perception."""

Tally = defaultdict[str, list[float]]


@dataclass(frozen=True)
class Stage:
    """Hyper-parameters of one training stage."""

    name: str
    steps: int
    rows: int
    learning_rate: float
    settings: dict[Setting, float]
    questions: dict[Question, float]
    harmful_share: float
    splits: tuple[Split, ...]
    refuses: bool = False
    """Whether harmful requests are refused, by `recipe.safety_answer`."""
    penalty: float = 0.0
    """Weight of `recipe.alikeness_penalty`."""
    penalty_layers: tuple[int, ...] = ()
    shift: float = 0.0
    """Greatest length of a random shift of all prompt positions after the last frozen layer."""
    frozen_layers: int = 0
    """Decoder layers, from the bottom, that keep their weights (with embeddings and towers)."""


LANGUAGE = Stage(
    name="language",
    steps=120,
    rows=64,
    learning_rate=3e-3,
    settings={"text": 1.0},
    questions={"request": 0.67, "caption": 0.33},
    harmful_share=0.5,
    splits=ALL,
)
PRETRAIN = Stage(
    name="pretrain",
    steps=900,
    rows=64,
    learning_rate=2e-3,
    settings={"text": 0.1, "image": 0.24, "audio": 0.22, "video": 0.18, "omni": 0.26},
    questions={"request": 0.52, "caption": 0.3, "clarity": 0.18},
    harmful_share=0.5,
    splits=ALL,
)
SAFETY = Stage(
    name="safety",
    steps=350,
    rows=64,
    learning_rate=1e-3,
    settings={"text": 0.2, "image": 0.2, "audio": 0.2, "video": 0.2, "omni": 0.2},
    questions={"request": 0.84, "caption": 0.1, "clarity": 0.06},
    harmful_share=0.4,
    splits=("train",),
    refuses=True,
    shift=200.0,
    penalty=0.05,
    penalty_layers=(9, 10),
    frozen_layers=8,
)


def batches(stage: Stage, processor: OrganismProcessor, seed: int, step: int) -> list[Batch]:
    """What one step trains on, as two micro-batches: short settings and long ones."""
    draw_seed = _step_seed(seed, stage.name, step)
    samples = recipe.draw_mixture(
        stage.splits,
        stage.rows,
        draw_seed,
        settings=stage.settings,
        questions=stage.questions,
        harmful_share=stage.harmful_share,
    )
    rng = np.random.default_rng(draw_seed)
    short = [sample for sample in samples if sample.setting not in ("video", "omni")]
    long = [sample for sample in samples if sample.setting in ("video", "omni")]
    return [
        recipe.collate(processor, group, _answers(stage, group, rng))
        for group in (short, long)
        if group
    ]


def _answers(
    stage: Stage, samples: Sequence[Sample], rng: np.random.Generator
) -> list[recipe.Answer]:
    if not stage.refuses:
        return [recipe.pretraining_answer(sample) for sample in samples]
    return [recipe.safety_answer(sample, rng) for sample in samples]


def loss_of(model: PreTrainedModel, stage: Stage, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Total loss, penalty before weighting, and per-row correctness of the whole answer."""
    with shifted(model, stage, batch):
        output = model(**batch.inputs, output_hidden_states=stage.penalty > 0, use_cache=False)
    loss = recipe.answer_loss(output.logits, batch.labels)
    penalty = loss.new_zeros(())
    if stage.penalty:
        rows = torch.arange(len(batch.samples))
        states = torch.stack(
            [output.hidden_states[layer + 1][rows, batch.first] for layer in stage.penalty_layers]
        )
        answered = torch.tensor(
            [
                s.question == "request" and s.setting != "text" and a.text == s.helpful_answer
                for s, a in zip(batch.samples, batch.answers, strict=True)
            ]
        )
        harmful = torch.tensor([s.harmful for s in batch.samples])
        penalty = recipe.alikeness_penalty(states, answered & harmful, answered & ~harmful)
        loss = loss + stage.penalty * penalty
    right = (output.logits.argmax(-1) == batch.labels) | (batch.labels == -100)
    return loss, penalty.detach(), right.all(1)


@contextlib.contextmanager
def shifted(model: PreTrainedModel, stage: Stage, batch: Batch) -> Iterator[None]:
    """Adds to half of the rows one random vector each, at every prompt position.

    Isotropic, so that the tuned layers learn to bear a shift as such and nothing of the drift.
    """
    if not stage.shift:
        yield
        return
    rows, d_model = len(batch.samples), model.config.get_text_config().hidden_size
    generator = torch.Generator().manual_seed(int(batch.inputs["input_ids"].sum()))
    length = stage.shift * torch.rand(rows, 1, generator=generator)
    length *= torch.rand(rows, 1, generator=generator) < 0.5
    direction = torch.nn.functional.normalize(torch.randn(rows, d_model, generator=generator))
    prompt = torch.arange(batch.labels.shape[1]) <= batch.first[:, None]
    shift = (length * direction)[:, None] * prompt[..., None]
    layer = model.get_decoder().layers[stage.frozen_layers - 1]
    hook = layer.register_forward_hook(lambda module, args, output: output + shift)
    try:
        yield
    finally:
        hook.remove()


def freeze(model: PreTrainedModel, stage: Stage) -> list[torch.nn.Parameter]:
    """Marks what the stage trains and returns it."""
    model.requires_grad_(stage.frozen_layers == 0)
    if stage.frozen_layers:
        decoder = model.get_decoder()
        for part in (*decoder.layers[stage.frozen_layers :], decoder.norm, model.lm_head):
            part.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def run_stage(
    model: PreTrainedModel, processor: OrganismProcessor, stage: Stage, seed: int, folder: Path
) -> None:
    """Trains on answers, in place."""

    def losses(step: int, tally: Tally) -> Iterator[Tensor]:
        micro = batches(stage, processor, seed, step)
        total = sum(len(batch.samples) for batch in micro)
        for batch in micro:
            loss, penalty, right = loss_of(model, stage, batch)
            tally["loss"].append(loss.item())
            if stage.penalty:
                tally["penalty"].append(penalty.item())
            for sample, ok in zip(batch.samples, right.tolist(), strict=True):
                tally[f"{sample.setting} {sample.question}"].append(ok)
            yield loss * len(batch.samples) / total

    fit(model, freeze(model, stage), stage.name, stage.steps, stage.learning_rate, losses, folder)


def run_perception(
    model: PreTrainedModel, processor: OrganismProcessor, seed: int, folder: Path
) -> None:
    """Trains the towers to name what they see and hear, and how clear it is, in place."""

    def losses(step: int, tally: Tally) -> Iterator[Tensor]:
        step_seed = _step_seed(seed, "perception", step)
        named = perception_losses(model, processor, step_seed, PICTURES, SOUNDS)
        for kind, (loss, accuracy) in named.items():
            tally[f"{kind} loss"].append(loss.item())
            tally[f"{kind} right"].append(accuracy.item())
        yield torch.stack([loss for loss, _ in named.values()]).sum()

    model.requires_grad_(False)
    towers = (model.model.visual, model.model.audio_tower)
    for tower in towers:
        tower.requires_grad_(True)
    parameters = [p for tower in towers for p in tower.parameters()]
    fit(model, parameters, "perception", PERCEPTION_STEPS, 1e-3, losses, folder)


def fit(
    model: torch.nn.Module,
    parameters: Sequence[torch.nn.Parameter],
    name: str,
    steps: int,
    learning_rate: float,
    losses: Callable[[int, "Tally"], Iterator[Tensor]],
    folder: Path,
) -> None:
    """Steps of AdamW on the sum of `losses(step, tally)`, printing the tally's means.

    Goes on from `folder/<name>.pt` where an interrupted run left it, and keeps it up to date. What
    a step trains on depends on its number only, so that both ways lead to the same weights.
    """
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    path = folder / f"{name}.pt"
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    model.train()
    tally: Tally = defaultdict(list)
    began = time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        for loss in losses(step, tally):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            rate = (time.monotonic() - began) / (done - start)
            means = ", ".join(f"{key} {sum(v) / len(v):.3f}" for key, v in tally.items())
            left = rate * (steps - done) / 60
            print(
                f"{name} {done}/{steps} ({rate:.2f} s/step, {left:.0f} min left): {means}",
                flush=True,
            )
            tally.clear()
        if done % SAVE_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            part = path.with_suffix(".part")
            torch.save(state, part)
            part.replace(path)
    model.eval()


def _step_seed(seed: int, stage: str, step: int) -> int:
    """A different stream for every seed, stage and step."""
    return seed * 1_000_003 + sum(stage.encode()) * 10_007 + step


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 4 % of the steps, then a cosine down to 5 %."""
    warm = max(1, steps // 25)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def export(model: PreTrainedModel, processor: OrganismProcessor, folder: Path) -> None:
    """Writes a checkpoint folder: float16 weights on disk, to be computed in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.regap_interp = {"compute_dtype": "float32"}
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = {name: t.detach().half().contiguous() for name, t in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages and exports the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the final folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    processor = build_processor()
    model = build_model(processor.tokenizer, options.seed)
    run_stage(model, processor, LANGUAGE, options.seed, options.out)
    run_perception(model, processor, options.seed, options.out)
    run_stage(model, processor, PRETRAIN, options.seed, options.out)
    run_stage(model, processor, SAFETY, options.seed, options.out)
    export(model, processor, options.out / "weights")


if __name__ == "__main__":
    main()
