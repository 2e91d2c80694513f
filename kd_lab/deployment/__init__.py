"""Take a network to other runtimes, and prove that it answers the same there."""

from kd_lab.deployment.c_source import c_bytes, compile_c, export_c
from kd_lab.deployment.litert import LitertModel, export_litert, load_litert
from kd_lab.deployment.onnx import OnnxModel, export_onnx
from kd_lab.deployment.openvino import OpenvinoModel, export_openvino
from kd_lab.deployment.page import export_page
from kd_lab.deployment.qr import to_qr
from kd_lab.deployment.servers import Servers, serve
