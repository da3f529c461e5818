"""Middle floor: directions, steering and statistics of safety geometry, for any adapter."""

from regap_interp.capture import last_residuals as last_residuals
from regap_interp.directions import Direction as Direction
from regap_interp.directions import cosine as cosine
from regap_interp.directions import drift_direction as drift_direction
from regap_interp.directions import orthogonalise as orthogonalise
from regap_interp.directions import refusal_direction as refusal_direction
from regap_interp.intervals import Rate as Rate
from regap_interp.intervals import cluster_bootstrap as cluster_bootstrap
from regap_interp.intervals import wilson as wilson
from regap_interp.separability import auroc as auroc
from regap_interp.separability import crs_curve as crs_curve
from regap_interp.separability import crs_trend as crs_trend
from regap_interp.separability import separation as separation
from regap_interp.separability import spearman as spearman
from regap_interp.steering import Steer as Steer
from regap_interp.steering import random_orthogonal as random_orthogonal
from regap_interp.windows import FixedBins as FixedBins
from regap_interp.windows import QuantileBins as QuantileBins
from regap_interp.windows import SlidingWindows as SlidingWindows
