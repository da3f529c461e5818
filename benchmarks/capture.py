"""What capturing states costs, against a bare forward of the decoder.

    python -m benchmarks.capture [--json] [--runs N] [--peers]

A Qwen2.5-Omni thinker of random weights on the CPU, 64 text prompts of 16 to 128 tokens. The bare
side runs them in the given order, 8 at a time, already encoded; ours starts from the chats. The
sides take turns in one process.
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import model_adapters
from regap_interp.capture import Labelled, capture_statistics, last_residuals
from regap_interp.statistics import Statistics

VOCABULARY = 8192
LAYERS = 24
BATCH = 8
BARS = {"capture_all": 1.0, "capture_layer8": 0.42, "capture_memory": 1.05}

# glibc gives freed tensors back at once, so that the peak is that of memory in use.
_NO_HOARDING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

Chat = list[dict[str, str]]


def build_thinker(layers: int = LAYERS, hidden: int = 768, mlp: int = 3072) -> Any:
    """A random thinker in float32; heads of 64, towers as small as they get."""
    torch.manual_seed(0)
    heads = hidden // 64
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config={
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "output_dim": hidden,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": hidden,
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [16, 8, 8],
            },
        },
        image_token_index=0,
        video_token_index=1,
        audio_token_index=2,
        vision_start_token_id=5,
        vision_end_token_id=6,
        audio_start_token_id=7,
        audio_end_token_id=8,
    )
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config).eval()


def build_tokenizer() -> Any:
    """One token for each word `w10` to `w8191`, and a template that adds one token."""
    words = {f"w{number}": number for number in range(10, VOCABULARY)}
    tokens = Tokenizer(models.WordLevel({"<unk>": 3, "<pad>": 4, **words}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        unk_token="<unk>",
        pad_token="<pad>",
        chat_template="{% for m in messages %}{{ m['content'] }} w10{% endfor %}",
    )


def prompts(count: int, seed: int = 0) -> Iterator[Chat]:
    """Random words in chats of 16 to 128 tokens, every 64 of them spread evenly, not in order."""
    draw = random.Random(seed)
    for number in range(count):
        length = 16 + round(112 * (number * 37 % 64) / 63)
        words = draw.choices(range(11, VOCABULARY), k=length - 1)
        yield [{"role": "user", "content": " ".join(f"w{word}" for word in words)}]


def sharing_weights(model: nn.Module) -> Any:
    """A copy of the modules alone: what wraps or rewires one leaves the other as it was."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


Side = Callable[[int], Any]
"""Does its work for so many of the prompts."""


def alternate(sides: dict[str, Side], count: int, runs: int) -> dict[str, list[float]]:
    """Seconds of every run of every side, the sides in turn, after a short run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(BATCH)
    for run in range(runs):
        for name, side in sides.items():
            print(f"\r{name}: run {run + 1} of {runs}   ", end="", file=sys.stderr, flush=True)
            start = time.perf_counter()
            side(count)
            seconds[name].append(time.perf_counter() - start)
    print(file=sys.stderr)
    return seconds


def ratio(side: list[float], base: list[float]) -> dict[str, Any]:
    """The median over the ratios of neighbouring runs, and the runs in pairs."""
    runs = [[mine, its] for mine, its in zip(side, base, strict=True)]
    return {"value": statistics.median(mine / its for mine, its in runs), "runs": runs}


def capture_ratios(
    *, count: int = 64, layers: int = LAYERS, runs: int = 3, peers: bool = False
) -> dict[str, dict[str, Any]]:
    """Seconds of captures over those of the bare decoder.

    Args:
        count: Prompts.
        layers: Decoder layers of the model.
        runs: Measured runs a side.
        peers: Also the same states by `output_hidden_states` and by TransformerLens.

    Returns:
        `capture_all` and `capture_layer8`, and with `peers` `output_hidden_states` and
        `transformer_lens`, which are the peers' seconds over the bare decoder's.
    """
    raw = build_thinker(layers)
    bare = sharing_weights(raw)
    tokenizer = build_tokenizer()
    adapter = model_adapters.load(raw, processor=tokenizer)
    chats = list(prompts(count))
    batches = [adapter.encode(chats[i : i + BATCH]).inputs for i in range(0, count, BATCH)]
    up_to_8 = range(8 * layers // LAYERS + 1)
    sides: dict[str, Side] = {
        "bare": lambda n: [forward(bare.get_decoder(), one) for one in batches[: n // BATCH]],
        "capture_all": lambda n: last_residuals(adapter, chats[:n], layers=range(layers)),
        "capture_layer8": lambda n: last_residuals(adapter, chats[:n], layers=up_to_8),
    }
    if peers:
        bridge = transformer_lens_bridge(sharing_weights(raw))
        # Who computes something else is no peer.
        theirs, ours = run_with_cache(bridge, batches[0]), sides["capture_all"](BATCH)
        torch.testing.assert_close(theirs.double(), ours, rtol=1e-4, atol=1e-5)
        sides |= {
            "output_hidden_states": lambda n: [
                hidden_states(bare, one) for one in batches[: n // BATCH]
            ],
            "transformer_lens": lambda n: [
                run_with_cache(bridge, one) for one in batches[: n // BATCH]
            ],
        }
    seconds = alternate(sides, count, runs)
    return {name: ratio(seconds[name], seconds["bare"]) for name in sides if name != "bare"}


@torch.no_grad()
def forward(decoder: Any, batch: dict[str, Tensor]) -> object:
    """The decoder without its head."""
    return decoder(**batch, use_cache=False)


@torch.no_grad()
def hidden_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Peer: transformers keeps every state of every position, then the last ones are taken.

    Its last state is that after the final norm.
    """
    kept = model.model(**batch, use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack([state[:, -1] for state in kept[1:]])


@torch.no_grad()
def run_with_cache(bridge: Any, batch: dict[str, Tensor]) -> Tensor:
    """Peer: TransformerLens caches `resid_post` of every position; the head runs too."""
    names = [f"blocks.{layer}.hook_out" for layer in range(bridge.cfg.n_layers)]
    _, cache = bridge.run_with_cache(
        batch["input_ids"], attention_mask=batch["attention_mask"], names_filter=names
    )
    return torch.stack([cache[name][:, -1] for name in names])


def transformer_lens_bridge(model: Any) -> Any:
    """A TransformerLens bridge to a thinker, which it has no entry for; it rewires `model`."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.model_bridge.supported_architectures import Qwen2_5_VLArchitectureAdapter

    class Thinker(Qwen2_5_VLArchitectureAdapter):
        """The entry for Qwen2.5-VL, with the thinker's own encoders."""

        # It asks for torchvision, which the decoder does not use.
        required_libraries: ClassVar[list[str]] = []

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for kind, path in (("vision", "visual"), ("audio", "audio_tower")):
                encoder = GeneralizedComponent(name=f"model.{path}")
                self.component_mapping[f"{kind}_encoder"] = encoder

    name = type(model).__name__
    ArchitectureAdapterFactory.register_adapter(name, Thinker)
    return build_bridge_from_module(model, name, hf_config=model.config).eval()


def memory_ratio(*, many: int = 4096, few: int = 512, runs: int = 3) -> dict[str, Any]:
    """Peak memory above the loaded model when `many` prompts are streamed, over `few`."""
    peaks: dict[int, list[float]] = {few: [], many: []}
    for run in range(runs):
        for count in peaks:
            print(f"\rmemory: run {run + 1} of {runs} ", end="", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.capture", "--stream", str(count)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **_NO_HOARDING},
            )
            peaks[count].append(float(done.stdout))
    print(file=sys.stderr)
    return {**ratio(peaks[many], peaks[few]), "peak_mb": {str(n): p for n, p in peaks.items()}}


def stream_peak(count: int) -> float:
    """MiB of peak memory above the loaded model; call it in a fresh process."""
    torch.set_num_threads(1)
    adapter = model_adapters.load(build_thinker(4, 384, 1536), processor=build_tokenizer())
    loaded = _restarted_peak()
    into = Statistics([("resid_post", layer) for layer in range(4)])
    items = (Labelled(str(i), "text", chat) for i, chat in enumerate(prompts(count)))
    capture_statistics(adapter, items, into=into)
    return (_status("VmHWM") - loaded) / 1024


def _restarted_peak() -> int:
    """KiB held now; the peak counts from here.

    Linux only: what `getrusage` calls the peak of a child begins at its parent's.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    """Print the ratios; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=int, default=3, help="measured runs a side")
    parser.add_argument("--peers", action="store_true", help="also time other libraries")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        print(stream_peak(options.stream))
        return 0
    torch.set_num_threads(2)
    ratios = capture_ratios(runs=options.runs, peers=options.peers)
    ratios["capture_memory"] = memory_ratio(runs=options.runs)
    if options.json:
        print(json.dumps({"ratios": ratios}))
    else:
        for name, found in ratios.items():
            bar = f", bar {BARS[name]}" if name in BARS else ""
            runs = " ".join(f"{mine / its:.3f}" for mine, its in found["runs"])
            print(f"{name}: {found['value']:.3f}{bar} (runs {runs})")
    return 0 if all(ratios[name]["value"] <= bar for name, bar in BARS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
