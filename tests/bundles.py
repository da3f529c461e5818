"""Bundles for the organism's architecture with random weights: their numbers mean nothing."""

import torch

from regap_interp.adaptive.bundle import MEDIA, Bundle, Calibration, Sweep
from regap_interp.adaptive.roc import roc
from regap_interp.artefact.manifest import Manifest
from regap_interp.directions import Direction, Origin, orthogonalise


def direction(adapter, layer, seed):
    draw = torch.randn(
        2, adapter.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return Direction(draw[0], draw[1], 8, 8, Origin(adapter.fingerprint, "resid_post", layer))


def bundle(adapter, modality, *, layer=4, diagnostic=7, threshold=0.0, **more):
    refusal = direction(adapter, layer, 1)
    drift = orthogonalise(direction(adapter, layer, 10 + MEDIA.index(modality)), refusal)
    values = torch.randn(2, 40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    chosen = {
        "weak": 0.5,
        "strong": 2.0,
        "signal": "paired_gain",
        "fallback": "none",
        **more,
    }
    return Bundle(
        modality=modality,
        layer=layer,
        diagnostic=diagnostic,
        threshold=threshold,
        drift=drift,
        refusal=refusal,
        diagnostic_refusal=direction(adapter, diagnostic, 2),
        manifest=Manifest.of(adapter, {}),
        calibration=Calibration(
            reasons={"layer": "given"},
            roc={"paired_gain": roc(values[0] + 1, values[1])},
            sweeps={"layer": Sweep(("layer", "crs_gain"), ((4.0, 0.1), (5.0, 1 / 3)))},
            n={"harmful": 40},
            refused="test",
            seed=0,
            data="0" * 64,
        ),
        **chosen,
    )
