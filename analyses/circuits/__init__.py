"""From scores to circuits: which parts of a model carry a metric, through which edges."""

from analyses.circuits.attribution import direct_attribution as direct_attribution
from analyses.circuits.checking import Check as Check
from analyses.circuits.circuit import Circuit as Circuit
from analyses.circuits.circuit import Edge as Edge
from analyses.circuits.comparison import Comparison as Comparison
from analyses.circuits.comparison import compare as compare
from analyses.circuits.direct import DirectAttribution as DirectAttribution
from analyses.circuits.drawing import CircuitView as CircuitView
from analyses.circuits.evaluation import curves as curves
from analyses.circuits.evaluation import minimality as minimality
from analyses.circuits.nodes import Node as Node
from analyses.circuits.outcomes import Curves as Curves
from analyses.circuits.outcomes import Minimality as Minimality
from analyses.circuits.ranking import Ranking as Ranking
from analyses.circuits.runs import Runs as Runs
from analyses.circuits.runs import record_runs as record_runs
from analyses.circuits.scores import Scores as Scores
from analyses.circuits.scores import score_edges as score_edges
