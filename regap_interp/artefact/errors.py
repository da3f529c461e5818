"""What can go wrong with a file of directions."""


class ArtefactError(ValueError):
    """A file of directions that cannot be read, or directions that do not belong together."""


class MismatchError(ArtefactError):
    """Directions made for another model, site or chat template than the one at hand."""
