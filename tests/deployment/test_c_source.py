"""A network in C gives the answers of the integer network, to the last bit; what C can't hold is refused."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.deployment import OnnxModel, c_bytes, c_source, compile_c, export_c, export_onnx
from kd_lab.deployment.c_source import pixels_of
from kd_lab.errors import ParameterError
from kd_lab.evaluation import predict_classes
from kd_lab.networks.zoo import small_student
from kd_lab.quantization import quantize_model, to_integer

TANH = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10))
CHECKED = "-fsanitize=address,undefined", "-fno-sanitize-recover"


def answers_of(header, images, *options):
    """Return what a program around the header prints for these images."""
    program, digits = header.with_suffix(".program"), header.with_suffix(".digits")
    digits.write_bytes(pixels_of(images).numpy().tobytes())
    compile_c(header, program, *options)
    return [int(line) for line in subprocess.run([program, digits], capture_output=True, check=True).stdout.split()]


def integer_of(model, mnist, **settings):
    return to_integer(quantize_model(model, mnist.train.images[:100], **settings))


@pytest.fixture(scope="module")
def integer(student, mnist):
    return integer_of(student, mnist)


def test_the_program_answers_as_the_integers_do(integer, mnist, tmp_path):
    export_c(integer, tmp_path / "digits.h")
    assert answers_of(tmp_path / "digits.h", mnist.test.images) == predict_classes(integer, mnist.test.images).tolist()


def convolutions():
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), groups=2, padding=(1, 0)),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding="same"),
        nn.Flatten(),
    )
    return nn.Sequential(*features, nn.Linear(features(torch.zeros(1, 1, 28, 28)).numel(), 10))


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_bits": 8},
        {"weight_bits": 2, "activation_bits": 4},
        {"weight_bits": 4, "granularity": "per_tensor"},
        {"weight_bits": 5, "symmetric": False},
    ],
    ids=str,
)
def test_windows_of_every_kind_and_few_bits_under_a_sanitizer(settings, mnist, validation, tmp_path):
    integer = integer_of(convolutions(), mnist, **settings)
    export_c(integer, tmp_path / "windows.h")
    some = validation.images[:200]
    assert answers_of(tmp_path / "windows.h", some, "-g", *CHECKED) == predict_classes(integer, some).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_the_convolutional_network_of_the_kit_answers_as_its_integers_do(bits, mnist, tmp_path):
    integer, some = integer_of(load_trained("cnn"), mnist, weight_bits=bits), mnist.test.images[:1000]
    export_c(integer, tmp_path / "digits.h")
    assert answers_of(tmp_path / "digits.h", some) == predict_classes(integer, some).tolist()


def test_onnx_runtime_gives_the_same_answers_to_the_same_integers(student, mnist, tmp_path):
    integer = integer_of(student, mnist, weight_bits=7)
    export_c(integer, tmp_path / "digits.h")
    export_onnx(integer, tmp_path / "digits.onnx")
    by_runtime = predict_classes(OnnxModel(tmp_path / "digits.onnx"), mnist.test.images)
    by_c = torch.tensor(answers_of(tmp_path / "digits.h", mnist.test.images))
    assert (by_runtime != by_c).sum() <= 5  # ONNX Runtime rounds a few sums to their other neighbour


def test_two_networks_go_into_one_program(student, integer, mnist, tmp_path):
    export_c(integer, tmp_path / "first.h")
    export_c(integer_of(small_student(8), mnist), tmp_path / "second.h")
    source = '#include "first.h"\n#include "second.h"\nint main(void) { return !&first_read + !&second_read; }\n'
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wno-address", "-I", str(tmp_path), "-x", "c", "-", "-o"]
    subprocess.run([*command, str(tmp_path / "both")], input=source, text=True, check=True)


def test_flash_and_ram_are_measured(integer, tmp_path):
    export_c(integer, tmp_path / "digits.h")
    flash, ram = c_bytes(tmp_path / "digits.h")
    weights = 784 * 32 + 32 * 10
    assert weights < flash < weights + 3_000 and 2 * 784 < ram < 2 * 784 + 500  # the layers' addresses are data


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [(b"", 0, ""), (b"x" * 785, 1, "ends in the middle of a picture"), (None, 2, "usage: ")],
)
def test_the_program_survives_what_is_no_file_of_pictures(content, status, said, integer, tmp_path):
    export_c(integer, tmp_path / "digits.h")
    compile_c(tmp_path / "digits.h", tmp_path / "read", *CHECKED)
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    done = subprocess.run([tmp_path / "read", tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == status and said in done.stderr


def test_a_file_of_mnist_itself_is_read(integer, validation, tmp_path):
    export_c(integer, tmp_path / "digits.h")
    compile_c(tmp_path / "digits.h", tmp_path / "read")
    head = b"".join(number.to_bytes(4, "big") for number in (0x803, 5, 28, 28))
    (tmp_path / "idx").write_bytes(head + pixels_of(validation.images[:5]).numpy().tobytes())
    printed = subprocess.run([tmp_path / "read", tmp_path / "idx"], capture_output=True, check=True).stdout
    assert [int(line) for line in printed.split()] == predict_classes(integer, validation.images[:5]).tolist()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda mnist: small_student(8), r"fc1 \(Linear\)"),
        (lambda mnist: quantize_model(small_student(8), mnist.train.images[:10]), "to_integer"),
        (lambda mnist: integer_of(load_trained("resnet"), mnist), r"block1 \(Residual\)"),
        (
            lambda mnist: integer_of(
                nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10)), mnist
            ),
            r"2 \(Tanh\)",
        ),
    ],
    ids=["float", "quantized", "residual", "tanh"],
)
def test_what_c_can_not_hold_is_named(build, said, mnist, tmp_path):
    with pytest.raises(ParameterError, match=rf"^export_c\(\): 'model' must run on integers .*{said}"):
        export_c(build(mnist), tmp_path / "digits.h")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["digits.c", "1.h", "a b.h"])
def test_a_name_that_c_does_not_know_is_refused(name, integer, tmp_path):
    with pytest.raises(ParameterError, match=r"'path' must be a name in C that ends in \.h"):
        export_c(integer, tmp_path / name)


def test_a_header_that_answers_otherwise_is_not_handed_over(integer, monkeypatch, tmp_path):
    monkeypatch.setattr(c_source, "STD", 2 * c_source.STD)  # of the table from pixels to integers, and not of torch's
    with pytest.raises(ParameterError, match=r"of 1000 answers differ: images \d+"):
        export_c(integer, tmp_path / "digits.h")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_a_warning_says_that_nothing_was_compared(integer, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="not compared"):
        export_c(integer, tmp_path / "digits.h")
    assert (tmp_path / "digits.h").stat().st_size > 0
