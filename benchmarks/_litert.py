"""Convert the networks that ship as LiteRT files: `make litert-files`. The kit loads them with `load_litert`."""

from kd_lab.checkpoints import load_trained
from kd_lab.data import load_mnist
from kd_lab.deployment import export_litert
from kd_lab.deployment.litert import SHIPPED

FILES = {"cnn": ["dynamic_int8", "static_int8"], "lenet5_classic": ["fp32", "dynamic_int8", "static_int8"]}
CALIBRATION_IMAGES = 300


def main() -> None:
    """Write each file where the kit finds it; in fp32, `cnn` would take the room of all the others."""
    some = load_mnist().train.images[:CALIBRATION_IMAGES]
    settings = {"fp32": {}, "dynamic_int8": {"dynamic": True}, "static_int8": {"calibration": some}}
    for network, kinds in FILES.items():
        for kind in kinds:
            export_litert(load_trained(network), SHIPPED / f"{network}_{kind}.tflite", **settings[kind])


if __name__ == "__main__":
    main()
