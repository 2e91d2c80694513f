"""A network in C gives the answers of the integer network, to the last bit; what C can't hold is refused."""

import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.deployment import OnnxModel, c_bytes, c_source, compile_c, export_c, export_onnx
from kd_lab.deployment.c_source import pixels_of
from kd_lab.errors import ParameterError, SetupError
from kd_lab.evaluation import predict_classes
from kd_lab.networks.zoo import small_student
from kd_lab.quantization import quantize_model, to_integer

TANH = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10))
STRICT = "-Wall", "-Wextra", "-Wpedantic", "-Werror"
CHECKED = *STRICT, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"
ARM = "arm-none-eabi-gcc", "-mthumb", "-mcpu=cortex-m0"
PRINT_SUMS = """
#include <stdio.h>
int main(void) {
  uint8_t pixels[784];
  while (fread(pixels, 1, 784, stdin) == 784) {
    NAME_read(pixels);
    for (int i = 0; i < 10; i++) printf("%ld ", (long)NAME_sums[i]);
  }
  return 0;
}
"""


def answers_of(header, images, *options):
    """Return what a program around the header prints for these images."""
    program, digits = header.with_suffix(".program"), header.with_suffix(".digits")
    digits.write_bytes(pixels_of(images).numpy().tobytes())
    compile_c(header, program, None, *options)
    return [int(line) for line in subprocess.run([program, digits], capture_output=True, check=True).stdout.split()]


def sums_of(header, images):
    """Return the sums of the last layer, a row for each image, as C computes them."""
    program, source = header.with_suffix(".sums"), f'#include "{header}"' + PRINT_SUMS.replace("NAME", header.stem)
    subprocess.run(["cc", "-std=c99", *STRICT, "-x", "c", "-", "-o", program], input=source.encode(), check=True)
    printed = subprocess.run([program], input=pixels_of(images).numpy().tobytes(), capture_output=True, check=True)
    return torch.tensor([int(number) for number in printed.stdout.split()]).view(len(images), -1)


def sums_of_torch(integer, images):
    last, found = integer[-1], []
    last.register_forward_hook(lambda layer, inputs, output: found.append(layer.accumulate(inputs[0])))
    with torch.no_grad():
        integer(images)
    last._forward_hooks.clear()
    return found[0]


def integer_of(model, mnist, **settings):
    return to_integer(quantize_model(model, mnist.train.images[:100], **settings))


@pytest.fixture(scope="module")
def integer(student, mnist):
    return integer_of(student, mnist)


@pytest.fixture(scope="module")
def header(integer, tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "digits.h"
    export_c(integer, path)
    return path


def test_the_program_answers_as_the_integers_do(header, integer, mnist):
    assert answers_of(header, mnist.test.images, *STRICT) == predict_classes(integer, mnist.test.images).tolist()


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
        pytest.param({"weight_bits": 8}, marks=pytest.mark.slow),
        {"weight_bits": 2, "activation_bits": 4},
        pytest.param({"weight_bits": 4, "granularity": "per_tensor"}, marks=pytest.mark.slow),
        pytest.param({"weight_bits": 5, "symmetric": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_windows_of_every_kind_and_few_bits_under_a_sanitizer(settings, mnist, validation, tmp_path):
    integer = integer_of(convolutions(), mnist, **settings)
    export_c(integer, tmp_path / "windows.h")
    some = validation.images[:200]
    assert answers_of(tmp_path / "windows.h", some, *CHECKED) == predict_classes(integer, some).tolist()
    assert torch.equal(sums_of(tmp_path / "windows.h", some), sums_of_torch(integer, some))


@pytest.mark.slow
def test_numbers_of_32_bits_get_the_same_answers(header, integer, validation):
    some = validation.images[:200]
    for options in [(), ("-m32",)]:  # which needs gcc-multilib
        assert answers_of(header, some, *options, *CHECKED) == predict_classes(integer, some).tolist()


@pytest.mark.slow
def test_a_microcontroller_gets_the_same_header_and_computes_nothing_in_floating_point(header):
    """It needs gcc-arm-none-eabi and libnewlib-arm-none-eabi; this processor would call functions for floats."""
    compile_c(header, header.with_suffix(".elf"), *ARM, *STRICT, "--specs=rdimon.specs")
    flash, ram = c_bytes(header, *ARM)
    assert 784 * 32 + 320 < flash < 784 * 32 + 320 + 3_000 and ram == 784 + 32 + 40
    (header.parent / "alone.c").write_text(f'#include "{header}"\nint f(const uint8_t *x) {{ return digits_read(x); }}')
    made = header.with_suffix(".o")
    subprocess.run([*ARM, "-std=c99", "-O2", "-c", header.parent / "alone.c", "-o", made], check=True)
    called = subprocess.run(["arm-none-eabi-nm", "-u", made], capture_output=True, text=True, check=True).stdout
    assert "__aeabi_lmul" in called  # int64, so it shows what is called
    assert not re.search(r"__aeabi_[fd]|malloc", called)


def test_of_two_equal_logits_the_first_is_answered_as_in_torch(mnist, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        model[1].weight[5:], model[1].bias[5:] = model[1].weight[:5], model[1].bias[:5]
    integer, some = integer_of(model, mnist), mnist.test.images[:1000]
    export_c(integer, tmp_path / "ties.h")
    answers = answers_of(tmp_path / "ties.h", some)
    assert answers == predict_classes(integer, some).tolist() and max(answers) < 5


@pytest.mark.slow
def test_the_convolutional_network_of_the_kit_answers_as_its_integers_do(mnist, tmp_path):
    integer, some = integer_of(load_trained("cnn"), mnist, weight_bits=4), mnist.test.images[:500]
    export_c(integer, tmp_path / "digits.h")
    assert answers_of(tmp_path / "digits.h", some) == predict_classes(integer, some).tolist()


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_answers_to_the_same_integers(header, integer, mnist, tmp_path):
    export_onnx(integer, tmp_path / "digits.onnx")
    by_runtime = predict_classes(OnnxModel(tmp_path / "digits.onnx"), mnist.test.images)
    by_c = torch.tensor(answers_of(header, mnist.test.images))
    assert (by_runtime != by_c).sum() <= 5  # of 10,000: ONNX Runtime rounds a few sums to their other neighbour


@pytest.mark.slow
def test_two_networks_go_into_one_program(integer, mnist, tmp_path):
    export_c(integer, tmp_path / "first.h")
    export_c(integer_of(small_student(8), mnist), tmp_path / "second.h")
    source = '#include "first.h"\n#include "second.h"\nint main(void) { return !&first_read + !&second_read; }\n'
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wno-address", "-I", str(tmp_path), "-x", "c", "-", "-o"]
    subprocess.run([*command, str(tmp_path / "both")], input=source, text=True, check=True)


def test_flash_and_ram_are_measured(header):
    flash, ram = c_bytes(header)
    assert 784 * 32 + 320 < flash < 784 * 32 + 320 + 3_000 and 856 <= ram < 920  # 784 + 32 bytes and ten sums


@pytest.mark.parametrize("call", [compile_c, c_bytes], ids=["compile_c", "c_bytes"])
@pytest.mark.parametrize(
    ("given", "said"), [(["nocc"], "nocc is not installed"), ([None, "-mcpu=none"], "'header' must be one")]
)
def test_a_compiler_that_fails_says_why(call, given, said, header):
    files = [header, header.with_suffix(".none")][: 2 if call is compile_c else 1]
    with pytest.raises((ParameterError, SetupError), match=rf"{said}"):
        call(*files, *given)


def test_without_the_program_that_measures_it_says_what_to_install(header, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name.endswith("size") else f"/bin/{name}")
    with pytest.raises(SetupError, match=r"^/bin/size is not installed\. .* apt-get install gcc"):
        c_bytes(header)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match=r"^A C compiler is not installed\."):
        compile_c(header, header.with_suffix(".none"))


@pytest.fixture(scope="module")
def checked_program(header):
    compile_c(header, header.with_suffix(".checked"), None, *CHECKED)
    return header.with_suffix(".checked")


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [(b"", 0, ""), (b"x" * 785, 1, "ends in the middle of a picture"), (None, 2, "usage: "), ("folder", 1, "read")],
)
def test_the_program_survives_what_is_no_file_of_pictures(content, status, said, checked_program, tmp_path):
    if content == "folder":
        (tmp_path / "file").mkdir()
    elif content is not None:
        (tmp_path / "file").write_bytes(content)
    done = subprocess.run([checked_program, tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == status and said in done.stderr


def test_a_file_of_mnist_itself_is_read(header, integer, validation, tmp_path, monkeypatch):
    monkeypatch.chdir(header.parent)
    compile_c(header.name, tmp_path / "read")
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
        (lambda mnist: integer_of(TANH, mnist), r"2 \(Tanh\)"),
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
