"""A network in C gives the answers of the integer network, to the last bit; what C can't hold is refused."""

import copy
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
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import small_student
from kd_lab.pruning import hard_prune, prune, prune_channels
from kd_lab.quantization import quantize_model, quantize_weights, to_integer

STRICT = "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"
CHECKED = *STRICT, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"
ARM = "arm-none-eabi-gcc", "-mthumb", "-mcpu=cortex-m4"  # whose numbers with a point are library calls, __aeabi_fmul
INSTALL = "Install gcc, gcc-multilib, gcc-arm-none-eabi and libnewlib-arm-none-eabi (packages of Debian) for this test."
PRINT_LOGITS = """
#include <stdio.h>
int main(void) {
  uint8_t pixels[784];
  while (fread(pixels, 1, 784, stdin) == 784) {
    NAME_read(pixels);
    for (int i = 0; i < 10; i++) printf("%ld ", (long)NAME_logits[i]);
  }
  return 0;
}
"""
PRINT_LOGITS_OF_SUMS = """
#include <stdio.h>
int main(void) {
  int32_t sum;
  while (fread(&sum, 4, 1, stdin) == 1)
    for (int i = 0; i < 10; i++) printf("%ld ", (long)NAME_logit(&NAME_layers[1], sum, i));
  (void)NAME_read;
  return 0;
}
"""


def answers_of(header, images, *options):
    """Return what a program around the header prints for these images."""
    program, digits = header.with_suffix(".program"), header.with_suffix(".digits")
    digits.write_bytes(pixels_of(images).numpy().tobytes())
    compile_c(header, program, None, *options)
    return [int(line) for line in subprocess.run([program, digits], capture_output=True, check=True).stdout.split()]


def printed_by(source, header, given):
    """Return the numbers, ten in a row, that a program around the header prints for these bytes."""
    program, source = header.with_suffix(".print"), f'#include "{header}"' + source.replace("NAME", header.stem)
    subprocess.run(["cc", "-std=c99", *CHECKED, "-x", "c", "-", "-o", program], input=source.encode(), check=True)
    printed = subprocess.run([program], input=given.numpy().tobytes(), capture_output=True, check=True).stdout
    return torch.tensor([int(number) for number in printed.split()]).view(-1, 10)


def ordered_bits(logits):
    """Return the bits of float32 numbers as integers in their order."""
    bits = logits.view(torch.int32).long()
    return torch.where(bits < 0, -(bits + 2**31), bits)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_bits": 8},
        {"weight_bits": 2, "activation_bits": 4, "granularity": "per_tensor"},
        {"weight_bits": 5, "symmetric": False},
    ],
    ids=str,
)
def test_windows_of_every_kind_and_few_bits_under_a_sanitizer(settings, mnist, validation, tmp_path):
    integer, some = integer_of(convolutions(), mnist, **settings), validation.images[:200]
    export_c(integer, tmp_path / "windows.h")
    found = printed_by(PRINT_LOGITS, tmp_path / "windows.h", pixels_of(some))
    assert torch.equal(found, ordered_bits(predict(integer, some)))


def test_logits_are_those_of_torch_to_the_last_bit(integer, tmp_path):
    """Those of the largest and the smallest sums, and of factors of which some give equal numbers."""
    hard, generator = copy.deepcopy(integer), torch.Generator().manual_seed(0)
    factor = torch.rand(10, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-8, 2)
    factor[1], factor[2] = torch.nextafter(factor[0], factor[1]), factor[0] * (1 + 2**-30)
    factor[3], factor[4] = (
        0.25,
        ((2**54 + 2**30 + 1) // 3) / 2**60,
    )  # halves; 3 times it, rounded once, is another number
    hard[-1].output.factor = factor
    (tmp_path / "hard.h").write_text(c_source._Header(hard, "hard").text())
    small, large = torch.arange(-40, 40), torch.randint(-(2**31), 2**31, (2_000,), generator=generator)
    ends = torch.tensor([2**24 + 1, 2**24 + 3, 2**31 - 1, 1 - 2**31, -(2**31)])
    sums = torch.cat([small, large, large >> 5, ends]).int()
    expected = ordered_bits((sums[:, None] * factor).float())
    assert torch.equal(printed_by(PRINT_LOGITS_OF_SUMS, tmp_path / "hard.h", sums), expected)


def test_classes_that_are_nearly_tied_are_told_apart_as_by_torch(mnist, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():  # ten classes whose scales differ by the last bits
        model[-1].weight[:] = model[-1].weight[0] * (1 + 1.2e-7 * (3 * torch.arange(10) % 7)).view(-1, 1)
        model[-1].bias.zero_()
    integer = integer_of(model, mnist)
    export_c(integer, tmp_path / "tied.h")
    logits = predict(integer, mnist.test.images)
    first, second = logits.topk(2).values.T
    assert (first == second).any() and len(logits.argmax(1).unique()) > 1
    assert answers_of(tmp_path / "tied.h", mnist.test.images) == logits.argmax(1).tolist()


@pytest.fixture
def compilers(tmp_path):
    """Fail unless there are compilers for numbers of 32 bits and for a microcontroller, with their libraries."""
    (tmp_path / "any.c").write_text("#include <stdio.h>\nint main(void) { return 0; }\n")
    for compiler in (["gcc", "-m32", "-fsanitize=address"], [*ARM, "--specs=rdimon.specs"]):
        command = [*compiler, tmp_path / "any.c", "-o", tmp_path / "any"]
        if not shutil.which(compiler[0]) or subprocess.run(command, capture_output=True).returncode:
            pytest.fail(INSTALL)


def test_numbers_of_32_bits_give_the_same_answers(compilers, header, integer, validation):
    some = validation.images[:200]
    assert answers_of(header, some, "-m32", *STRICT) == predict_classes(integer, some).tolist()


def test_a_microcontroller_gets_a_program_without_floating_point(compilers, header, tmp_path):
    compile_c(header, tmp_path / "read.elf", *ARM, *STRICT, "--specs=rdimon.specs")
    flash, ram = c_bytes(header, *ARM)
    assert 784 * 32 + 320 < flash < 784 * 32 + 320 + 3_000 and ram == 784 + 32 + 40
    source = f'#include "{header}"\nint f(const uint8_t *pixels) {{ return digits_read(pixels); }}\n'
    subprocess.run([*ARM, "-c", "-x", "c", "-", "-o", tmp_path / "f.o"], input=source.encode(), check=True)
    named = subprocess.run(["arm-none-eabi-nm", "-u", tmp_path / "f.o"], capture_output=True, text=True, check=True)
    assert set(named.stdout.split()) <= {"U", "__aeabi_idiv", "__aeabi_llsl", "__aeabi_lasr", "__aeabi_llsr", "memset"}


@pytest.mark.slow
def test_nothing_is_undefined_on_real_digits(header, integer, mnist):
    some = mnist.test.images[:2_000]
    assert answers_of(header, some, *CHECKED) == predict_classes(integer, some).tolist()


@pytest.mark.slow
def test_the_convolutional_network_of_the_kit_answers_as_its_integers_do(mnist, tmp_path):
    integer, some = integer_of(load_trained("cnn"), mnist, weight_bits=4), mnist.test.images[:300]
    export_c(integer, tmp_path / "digits.h")
    assert answers_of(tmp_path / "digits.h", some) == predict_classes(integer, some).tolist()


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_answers_to_the_same_integers(mnist, tmp_path):
    integer = integer_of(load_trained("cnn"), mnist)
    export_onnx(integer, tmp_path / "digits.onnx")
    export_c(integer, tmp_path / "digits.h")
    logits = predict(OnnxModel(tmp_path / "digits.onnx"), mnist.test.images)
    first, second = logits.topk(2).values.T
    nearest = (first - second).argsort()[:1000]  # to another answer, where a small difference is seen
    assert answers_of(tmp_path / "digits.h", mnist.test.images[nearest]) == logits[nearest].argmax(1).tolist()


@pytest.mark.slow
def test_two_networks_go_into_one_program(integer, mnist, tmp_path):
    export_c(integer, tmp_path / "first.h")
    export_c(integer_of(small_student(8), mnist), tmp_path / "second.h")
    source = '#include "first.h"\n#include "second.h"\nint main(void) { return !&first_read + !&second_read; }\n'
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wno-address", "-I", str(tmp_path), "-x", "c", "-", "-o"]
    subprocess.run([*command, str(tmp_path / "both")], input=source, text=True, check=True)


def test_flash_and_ram_are_measured(header):
    flash, ram = c_bytes(header)
    assert 784 * 32 + 320 < flash < 784 * 32 + 320 + 3_000 and 856 <= ram < 920  # 784 + 32 bytes and ten logits


@pytest.mark.parametrize("call", [compile_c, c_bytes], ids=["compile_c", "c_bytes"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nocc"], "'compiler' must be a C compiler that is installed, of the package gcc"),
        ([None, "-mcpu=none"], "'header' must be one"),
    ],
)
def test_a_compiler_that_fails_says_why(call, given, said, header):
    files = [header, header.with_suffix(".none")][: 2 if call is compile_c else 1]
    with pytest.raises(ParameterError, match=rf"^{call.__name__}\(\): {said}"):
        call(*files, *given)


@pytest.mark.parametrize("printed", [None, "echo __TEXT __DATA __OBJC others dec hex"])
def test_bytes_are_counted_by_gnu_size_alone(printed, header, monkeypatch, tmp_path):
    (tmp_path / "cc").symlink_to(shutil.which("cc"))
    if printed:
        (tmp_path / "size").write_text(f"#!/bin/sh\n{printed}\n")
        (tmp_path / "size").chmod(0o700)
    with pytest.raises(ParameterError, match=r"^c_bytes\(\): 'compiler' must be one with GNU size, .* binutils\. Got"):
        c_bytes(header, str(tmp_path / "cc"))


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


def masked(model):
    return prune(model, 0.5)


def last_is(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 5, stride=4), nn.ReLU(), *layers)


TANH = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Tanh(), nn.Linear(8, 10))
REFUSED = {
    "dense": (lambda mnist: small_student(8), r"to_integer\(\) .* fc1 \(Linear 784-8\)"),
    "masked": (lambda mnist: masked(small_student(8)), r"to_integer\(\) .* fc1 \(Linear 784-8\)"),
    "weights": (lambda mnist: quantize_weights(small_student(8), 8), r"to_integer\(\) .* fc1 \(Linear 784-8\)"),
    "quantized": (lambda mnist: quantize_model(small_student(8), mnist.train.images[:10]), r"to_integer\(\) .* fc1"),
    "residual": (lambda mnist: integer_of(load_trained("resnet"), mnist), r"block1 \(Residual\)"),
    "tanh": (lambda mnist: integer_of(TANH, mnist), r"2 \(Tanh\)"),
    "places": (lambda mnist: integer_of(last_is(nn.Conv2d(2, 2, 2), nn.Flatten()), mnist), r"2 \(a convolution that"),
    "float32": (lambda mnist: integer_of(small_student(8), mnist).float(), r"fc2 \(scales that were made float32"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_c_can_not_hold_is_named(build, said, mnist, tmp_path):
    with pytest.raises(ParameterError, match=rf"^export_c\(\): 'model' must run on integers .*{said}"):
        export_c(build(mnist), tmp_path / "digits.h")
    assert not list(tmp_path.iterdir())


FORMS = {
    "masked": lambda mnist, student: masked(student),
    "hard-pruned": lambda mnist, student: hard_prune(prune_channels(student, 0.5)),
    "own": lambda mnist, student: last_is(nn.Conv2d(2, 5, 6), nn.Dropout(), nn.Flatten()),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", FORMS.values(), ids=FORMS)
def test_pruned_networks_and_those_of_a_learner_answer_alike(build, mnist, student, tmp_path):
    integer, some = integer_of(build(mnist, student), mnist), mnist.test.images[:500]
    (tmp_path / "a folder").mkdir()
    export_c(integer, tmp_path / "a folder" / "digits.h")
    assert answers_of(tmp_path / "a folder" / "digits.h", some) == predict_classes(integer, some).tolist()


@pytest.mark.parametrize("name", ["digits.c", "1.h", "a b.h", "ä.h"])
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
