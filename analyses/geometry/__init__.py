"""Geometry of refusal and drift, for any adapter and requests of your own.

`measure_states` reads requests once; `plane`, `decompose` and windows are computed from what it
read. `sweep`, `reverse_test` and `rectify` run the model under edits.
"""

from analyses.geometry.cells import Cell as Cell
from analyses.geometry.conditional import separability_windows as separability_windows
from analyses.geometry.controls import control_arms as control_arms
from analyses.geometry.controls import drift_arm as drift_arm
from analyses.geometry.decomposition import Decomposition as Decomposition
from analyses.geometry.decomposition import decompose as decompose
from analyses.geometry.estimate import Estimate as Estimate
from analyses.geometry.lens import Lens as Lens
from analyses.geometry.lens import LogitLens as LogitLens
from analyses.geometry.lens import RefusalTokens as RefusalTokens
from analyses.geometry.lens import TunedLens as TunedLens
from analyses.geometry.lens import find_refusal_tokens as find_refusal_tokens
from analyses.geometry.lens import lens_log_odds as lens_log_odds
from analyses.geometry.lines import Line as Line
from analyses.geometry.lines import LinePanel as LinePanel
from analyses.geometry.lines import LinesView as LinesView
from analyses.geometry.planes import Plane as Plane
from analyses.geometry.planes import plane as plane
from analyses.geometry.rectification import rectify as rectify
from analyses.geometry.requests import Requests as Requests
from analyses.geometry.result import Result as Result
from analyses.geometry.result import Source as Source
from analyses.geometry.signals import SignalAreas as SignalAreas
from analyses.geometry.states import States as States
from analyses.geometry.states import coordinates as coordinates
from analyses.geometry.states import measure_states as measure_states
from analyses.geometry.strengths import reverse_test as reverse_test
from analyses.geometry.strengths import sweep as sweep
from analyses.geometry.sweeps import Sweep as Sweep
from analyses.geometry.trajectories import Rectification as Rectification
from analyses.geometry.windowed import Windowed as Windowed
from analyses.resuming import Interrupted as Interrupted
from analyses.resuming import Partial as Partial
