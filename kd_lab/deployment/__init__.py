"""Take a compressed network out of the notebook, to other runtimes, and prove that it answers the same there."""

from kd_lab.deployment.onnx import OnnxModel, export_onnx
from kd_lab.deployment.servers import Servers, serve
