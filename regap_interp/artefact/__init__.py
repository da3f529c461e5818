"""Directions in files: saved, checked against the model they are loaded for, exchanged."""

from regap_interp.artefact.convert import at_layer_outputs as at_layer_outputs
from regap_interp.artefact.directions import Directions as Directions
from regap_interp.artefact.directions import load_directions as load_directions
from regap_interp.artefact.errors import ArtefactError as ArtefactError
from regap_interp.artefact.errors import MismatchError as MismatchError
from regap_interp.artefact.imports import import_refusal_direction as import_refusal_direction
from regap_interp.artefact.imports import import_repeng as import_repeng
from regap_interp.artefact.manifest import TOWARDS_HARMFUL as TOWARDS_HARMFUL
from regap_interp.artefact.manifest import TOWARDS_MEDIA as TOWARDS_MEDIA
from regap_interp.artefact.manifest import Manifest as Manifest
from regap_interp.artefact.manifest import Recipe as Recipe
from regap_interp.artefact.provenance import data_fingerprint as data_fingerprint
