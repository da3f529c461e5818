"""Intervention graphs: small programs of reads, gates and edits, as data."""

from regap_interp.graph.edits import Edit as Edit
from regap_interp.graph.edits import add as add
from regap_interp.graph.edits import remove as remove
from regap_interp.graph.edits import replace as replace
from regap_interp.graph.edits import set_coordinate as set_coordinate
from regap_interp.graph.errors import GraphError as GraphError
from regap_interp.graph.graph import Graph as Graph
from regap_interp.graph.graph import Steered as Steered
from regap_interp.graph.nodes import Constant as Constant
from regap_interp.graph.nodes import Node as Node
from regap_interp.graph.nodes import Steps as Steps
from regap_interp.graph.nodes import constant as constant
from regap_interp.graph.nodes import lens as lens
from regap_interp.graph.nodes import modality as modality
from regap_interp.graph.nodes import read as read
from regap_interp.graph.nodes import select as select
from regap_interp.graph.results import Run as Run
from regap_interp.graph.serial import load_graph as load_graph
