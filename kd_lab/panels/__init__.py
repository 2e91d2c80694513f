"""Show live what a control does to a really measured network."""

from kd_lab.panels.distillation import DistillationPanel
from kd_lab.panels.frontier import FrontierPanel
from kd_lab.panels.least_squares import LeastSquaresPanel
from kd_lab.panels.low_rank import LowRankPanel
from kd_lab.panels.pad import DrawingPanel
from kd_lab.panels.prediction import PredictionPanel
from kd_lab.panels.pruning import PruningPanel
from kd_lab.panels.quantization import QuantizationPanel
from kd_lab.panels.recipe import RecipePanel
from kd_lab.panels.structured import StructuredPruningPanel
