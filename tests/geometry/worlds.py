"""Requests and states whose geometry is known, without a model; and requests for any model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import model_adapters
from analyses.geometry import Requests, Source, States, measure_states
from model_adapters import Adapter, Batch
from model_adapters.probe import example
from model_adapters.tiny import builders

Measured = tuple[Adapter, Requests, States]
FAMILIES = {"qwen3_vl": "image", "llava": "image", "qwen2_audio": "audio"}
"""Other families, with ready encodings of a medium they take."""
_MADE: dict[tuple[str, str], Measured] = {}

SOURCE = Source(model="planted", fingerprint="f" * 64, site="resid_post", at="last")


def named(n: int, media: Sequence[str] = ("image",)) -> Requests:
    """`n` text requests, every other harmful, each with a twin of every kind of media."""
    text = [f"text {i}" for i in range(n)]
    harmful = [i % 2 == 0 for i in range(n)]
    rounds = 1 + len(media)
    return Requests(
        entries=tuple([{"role": "user", "content": "planted"}] for _ in range(n * rounds)),
        ids=(*text, *(f"{kind} {i}" for kind in media for i in range(n))),
        harmful=torch.tensor(harmful * rounds),
        modality=("text",) * n + tuple(kind for kind in media for _ in range(n)),
        twin=(None,) * n + tuple(text) * len(media),
        cluster=tuple(text) * rounds,
    )


def plant(
    n: int = 60,
    width: int = 16,
    *,
    seed: int = 0,
    refusal: float = 3.0,
    drift: float = 3.0,
    cosine: float = 0.0,
    media: Sequence[str] = ("image",),
    layers: int = 1,
) -> States:
    """Refusal along axis 0; the drift of every kind of media in the plane of axes 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(layers, n, width, generator=generator, dtype=torch.float64)

    requests = named(n, media)
    text = noise()
    text[:, :, 0] += refusal * requests.harmful[:n]
    shift = torch.zeros(width, dtype=torch.float64)
    shift[:2] = torch.tensor([drift * cosine, drift * (1 - cosine**2) ** 0.5])
    values = torch.cat([text, *(text + shift + noise() for _ in media)], dim=1)
    return States(values, tuple(range(layers)), requests, SOURCE)


def encoded(adapter: Adapter, kind: str, n: int = 4) -> Requests:
    """`n` random media and as many random texts called their twins, one request a batch."""
    kinds = ((), (kind,))
    batches = [
        adapter.describe(**example(adapter.module, adapter.family, of, size=i % 2, seed=i))
        for of in kinds
        for i in range(n)
    ]
    return Requests.encoded(
        batches,
        harmful=[i % 2 == 0 for i in range(n)] * 2,
        twin=[*[None] * n, *range(n)],
    )


def worded(adapter: Adapter, n: int = 4, seed: int = 0, kind: str = "image") -> Requests:
    """Requests of the organism's world, media and their twins, `n` of each kind."""
    from analyses.organism.items import as_item
    from model_adapters.organism.world import SETTINGS, draw_samples

    (setting,) = (one for one in SETTINGS if one == kind)
    items = {}
    for harmful in (True, False):
        for sample in draw_samples("direction", setting, n, seed=seed, harmful=harmful):
            for one in (sample, sample.twin()):
                item = as_item(one, "direction")
                items[item.id] = item
    return Requests.of(list(items.values()), split="direction")


def hooked(
    adapter: Adapter, batch: Batch, *, layer: int = 0, minus: Tensor | None = None
) -> Tensor:
    """`resid_post` of every layer at the last token of one request, by hooks of PyTorch alone.

    `minus` is subtracted after `layer`, at every position.
    """
    seen: dict[int, Tensor] = {}

    def taker(at: int) -> Callable[..., object]:
        def take(module: nn.Module, given: object, output: object) -> object:
            value = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
            changed = value
            if minus is not None and at == layer:
                changed = value - minus.to(value)
            seen[at] = changed[0, int(batch.last[0])].double()
            return changed if isinstance(output, Tensor) else (changed, *output[1:])  # type: ignore[index]

        return take

    blocks = adapter.module.get_submodule(adapter.layout.layers)
    handles = [block.register_forward_hook(taker(at)) for at, block in enumerate(blocks)]
    with torch.no_grad():
        adapter.module(**batch.inputs)
    for handle in handles:
        handle.remove()
    return torch.stack([seen[at] for at in range(adapter.n_layers)])


def measured_on(name: str, kind: str, organism: Adapter) -> Measured:
    """The organism or one of `FAMILIES`, requests of a kind of media, their states; made once."""
    if (name, kind) not in _MADE:
        if name == "organism":
            adapter, requests = organism, worded(organism, kind=kind)
        else:
            adapter = model_adapters.load(builders()[name]())
            requests = encoded(adapter, kind)
        _MADE[name, kind] = adapter, requests, measure_states(adapter, requests)
    return _MADE[name, kind]
