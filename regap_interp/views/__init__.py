"""Static pictures of results, safe in any notebook: text, HTML without scripts, figures.

Matplotlib, pandas and circuitsvis are imported when first used.
"""

from regap_interp.views.about import About as About
from regap_interp.views.attention import AttentionHeads as AttentionHeads
from regap_interp.views.bands import Band as Band
from regap_interp.views.colour import Scale as Scale
from regap_interp.views.coloured import Coloured as Coloured
from regap_interp.views.compared import Compared as Compared
from regap_interp.views.compared import compared as compared
from regap_interp.views.heatmap import HeatMap as HeatMap
from regap_interp.views.interactive import Interactive as Interactive
from regap_interp.views.media import AudioFrames as AudioFrames
from regap_interp.views.media import ImagePatches as ImagePatches
from regap_interp.views.media import VideoPatches as VideoPatches
from regap_interp.views.plane import PlanePoints as PlanePoints
from regap_interp.views.plane import PlaneView as PlaneView
from regap_interp.views.prompt import Prompt as Prompt
from regap_interp.views.roc import RocCurve as RocCurve
from regap_interp.views.roc import RocCurves as RocCurves
from regap_interp.views.roc import RocView as RocView
from regap_interp.views.tokens import TokenStrip as TokenStrip
from regap_interp.views.trajectories import LayerTrace as LayerTrace
from regap_interp.views.trajectories import TrajectoriesView as TrajectoriesView
from regap_interp.views.view import Shown as Shown
from regap_interp.views.view import View as View
from regap_interp.views.windows import WindowCurve as WindowCurve
from regap_interp.views.windows import WindowsView as WindowsView
