"""Convert `cnn` to the LiteRT files that ship: `make litert-files`. The kit loads them with `load_litert`."""

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.deployment import export_litert
from kd_lab.deployment.litert import SHIPPED
from kd_lab.quantization import quantize_model, to_integer

CALIBRATION_IMAGES = 300
KINDS = ["fp32", "dynamic_int8", "static_int8", "integer"]  # LiteRT's own int8, and the kit's


def main() -> None:
    """Write each file where the kit finds it."""
    some = load_mnist().train.images[:CALIBRATION_IMAGES]
    for kind in KINDS:
        model = load_trained("cnn")
        model = to_integer(quantize_model(model, some)) if kind == "integer" else model
        calibration = some if kind == "static_int8" else None
        export_litert(model, SHIPPED / f"cnn_{kind}.tflite", None, calibration, kind == "dynamic_int8")


if __name__ == "__main__":
    main()
