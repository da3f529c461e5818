"""What can be wrong with a graph."""


class GraphError(ValueError):
    """A graph that cannot run as written: names the node, what was found and what to do."""
