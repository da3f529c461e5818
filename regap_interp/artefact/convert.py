"""The same directions, said of another place."""

import dataclasses

from model_adapters import Adapter
from regap_interp.artefact.directions import Directions
from regap_interp.artefact.errors import ArtefactError


def at_layer_outputs(directions: Directions, adapter: Adapter) -> Directions:
    """Directions of site "resid_pre" as directions of site "resid_post".

    What enters layer l is what left layer l - 1, so each moves to the layer before.

    Raises:
        ArtefactError: Directions of another site; of layer 0, which no layer precedes; or of a
            layer that the model adds features before, so that input and output differ.
        MismatchError: They were made for another model.
    """
    directions.check(adapter, site="resid_pre")
    layers = {layer for name in directions for layer in directions[name]}
    wrong = sorted(layers & {0, *(before + 1 for before in adapter.discontinuities)})
    if wrong:
        raise ArtefactError(
            f"the input of layers {', '.join(map(str, wrong))} is not the output of the layer "
            "before; make Directions of the other layers and convert those"
        )
    return Directions(
        dataclasses.replace(directions.manifest, site="resid_post"),
        {
            name: {
                layer - 1: dataclasses.replace(one, origin=None)
                for layer, one in directions[name].items()
            }
            for name in directions
        },
    )
