"""Write in a few bytes what a network is: its place among the kit's and what is left of it, or its layers as numbers.

Each function goes along the numbers once: with a writer it writes them, with a reader what it is given says nothing
and it returns what was written. KDZ.md has the tables in words.
"""

import torch
from torch import nn

from kd_lab.formats.coding import ShortRangeReader, ShortRangeWriter, code_choice
from kd_lab.networks.sequences import (
    AGAIN,
    KINDS,
    MAX_STEPS,
    POOLS,
    SEQUENCE,
    WITH_TENSORS,
    LayerStep,
    build_sequence,
    flattened,
    input_shapes,
    steps_of,
)
from kd_lab.networks.zoo import STUDENT, build_architecture, replaceable_layers
from kd_lab.pruning.channels import Form, build_form, form_choices, form_of

Stream = ShortRangeWriter | ShortRangeReader
NOTHING = Form(SEQUENCE, [], {}, [])  # what a reader is given
Outline = Form | list[LayerStep]  # what a file says of a network of the kit, and of any other

# both only ever get longer: a place is what a file has
NETWORKS = SEQUENCE, "student", "mlp128", "lenet300", "cnn", "lenet5", "lenet5_classic", "resnet", "lstm", "vit"
END = "end"
STEP_KINDS = (END, *KINDS, AGAIN)

# How likely each is, as whole counts. Places without a name are kept for what comes later.
NETWORK_COUNTS = (22, *[1] * 31)
KIND_COUNTS = {  # of what follows each kind of layer, "" for none, in the order of STEP_KINDS
    "": (1, 80, 1, 2, 4, 1, 1, 16, 2, 1),
    "conv": (1, 24, 1, 20, 4, 4, 36, 4, 10, 4),
    "linear": (60, 1, 4, 1, 1, 1, 36, 1, 1, 2),
    "max_pool": (1, 36, 1, 1, 1, 2, 44, 12, 2, 6),
    "average_pool": (1, 36, 1, 1, 1, 2, 44, 12, 2, 6),
    "mean": (1, 4, 1, 1, 1, 1, 8, 90, 1, 1),
    "relu": (2, 40, 14, 14, 3, 10, 1, 8, 2, 8),
    "flatten": (20, 1, 90, 1, 1, 1, 2, 1, 1, 1),
    "norm": (1, 10, 1, 24, 2, 4, 60, 2, 1, 2),
}
SPARE_KINDS = (1,) * 6
USUAL = (1, 3)  # no, yes
SELDOM = (7, 1)
EVEN = (1, 1)
GROUPS = (3, 3, 1)  # one, one for each channel, another number
LONGER = tuple(2 ** (15 - bits) for bits in range(16))  # each bit more halves the odds


def outline_of(plain: nn.Module) -> Outline:
    """Return what a file says of an ordinary network: its form, or its steps where it isn't one of the kit.

    Raises a ParameterError for a network that is neither.
    """
    return form_of(plain) if _is_of_the_kit(plain) else steps_of(flattened(plain))


def as_unpacked(plain: nn.Module) -> nn.Module:
    """Return an ordinary network as a file gives it back: laid out as the kit's are, and its layers named as theirs."""
    if _is_of_the_kit(plain):
        return plain
    model = flattened(plain).to(memory_format=torch.channels_last)
    model.architecture = SEQUENCE
    return model


def _is_of_the_kit(plain: nn.Module) -> bool:
    return str(getattr(plain, "architecture", SEQUENCE)).split("/")[0] != SEQUENCE


def build_outline(outline: Outline) -> nn.Module:
    """Build the network, with initial weights; raise a ParameterError for what can't be."""
    return build_form(outline) if isinstance(outline, Form) else build_sequence(outline)


def code_outline(stream: Stream, outline: Outline) -> Outline:
    """Code what a network is."""
    architecture = outline.architecture if isinstance(outline, Form) else SEQUENCE
    base, *thin = architecture.split("/")
    student = STUDENT.fullmatch(base)
    place = code_choice(stream, NETWORKS.index("student" if student else base), NETWORK_COUNTS)
    if place >= len(NETWORKS):
        raise ValueError("it is a network that this kd_lab doesn't have. Update kd_lab.")
    if place == 0:
        return _code_steps(stream, outline if isinstance(outline, list) else [])
    base = NETWORKS[place]
    if base == "student":
        base = f"784-{1 + _number(stream, int(student[1]) - 1 if student else 0, 5)}-10"
    architecture = "/".join([base, *_code_thin(stream, base, thin)])
    return _code_form(stream, outline if isinstance(outline, Form) else Form("", [], {}, []), architecture)


def _number(stream: Stream, value: int, width: int) -> int:
    """Code a whole number from 0, in 1 + `width` bits if it is below 2^width: as Exp-Golomb codes have it."""
    bits = width + code_choice(stream, (value + 2**width).bit_length() - 1 - width, LONGER)
    return stream.whole(value + 2**width - 2**bits, 2**bits) + 2**bits - 2**width


def _code_thin(stream: Stream, base: str, thin: list[str]) -> list[str]:
    """Code which layers of a network two thin ones stand for, and their ranks: ["fc1=20", "fc2=5"]."""
    count, found = _number(stream, len(thin), 0), []
    layers = [*replaceable_layers(build_architecture(base))]
    for each in range(_at_most(count, MAX_STEPS)):
        name, _, rank = (thin[each] if each < len(thin) else f"{layers[0]}=1").partition("=")
        place = stream.whole(layers.index(name), len(layers))
        found.append(f"{layers[place]}={1 + _number(stream, int(rank) - 1, 4)}")
        layers[place : place + 1] = [f"{layers[place]}.{part}" for part in ("first", "second")]
    return found


def _code_form(stream: Stream, form: Form, architecture: str) -> Form:
    """Code the modules that are gone, how many channels narrower groups have, and the layers with a new bias."""
    names = [name for name, _ in build_architecture(architecture).named_modules() if name]
    places = [names.index(name) for name in form.removed]
    count = _at_most(_number(stream, len(places), 0), len(names))
    removed = [names[stream.whole(places[each] if places else 0, len(names))] for each in range(count)]
    sizes, biasless = form_choices(architecture, removed)
    widths = {}
    for name, size in sizes.items():
        if size > 1 and code_choice(stream, name in form.widths, EVEN):
            widths[name] = 1 + stream.whole(form.widths.get(name, 1) - 1, size - 1)
    biased = [name for name in biasless if code_choice(stream, name in form.biased, SELDOM)]
    return Form(architecture, removed, widths, biased)


def _code_steps(stream: Stream, steps: list[LayerStep]) -> list[LayerStep]:
    """Code the kind and the numbers of each layer, until one is the end."""
    found: list[LayerStep] = []
    before = ""
    while True:
        step = steps[len(found)] if len(found) < len(steps) else LayerStep(END)
        place = code_choice(stream, STEP_KINDS.index(step.kind), KIND_COUNTS[before] + SPARE_KINDS)
        if place >= len(STEP_KINDS):
            raise ValueError("it has a kind of layer that this kd_lab doesn't know. Update kd_lab.")
        if place == 0:
            return found
        shape = input_shapes([*found, LayerStep("relu")])[-1]  # which says so where those before don't fit
        found.append(_code_step(stream, step, STEP_KINDS[place], found, shape[0]))
        before = found[found[-1].place].kind if found[-1].kind == AGAIN else found[-1].kind


def _code_step(stream: Stream, step: LayerStep, kind: str, before: list[LayerStep], channels: int) -> LayerStep:
    """Code the numbers of a layer that reads so many channels."""
    if kind == AGAIN:
        earlier = [place for place, each in enumerate(before) if each.kind in WITH_TENSORS]
        if not earlier:
            raise ValueError("it runs a layer again where there is none before.")
        chosen = earlier.index(step.place) if step.kind == AGAIN else 0
        return LayerStep(AGAIN, place=earlier[stream.whole(chosen, len(earlier))])
    if kind in POOLS:
        return _code_pool(stream, step, kind)
    if kind == "conv":
        return _code_convolution(stream, step, channels)
    if kind == "linear":
        outputs = 1 + _number(stream, step.outputs - 1, 2)
        return LayerStep(kind, outputs, bias=not code_choice(stream, not step.bias, SELDOM))
    return LayerStep(kind)


def _code_pool(stream: Stream, step: LayerStep, kind: str) -> LayerStep:
    usual = LayerStep(kind, kernel=(2, 2), stride=(2, 2))
    if code_choice(stream, step == usual, USUAL):
        return usual
    square = bool(code_choice(stream, _is_square(step), USUAL))
    kernel = _pair(stream, step.kernel, square, 1)
    stride = kernel if code_choice(stream, step.stride == step.kernel, USUAL) else _pair(stream, step.stride, square, 1)
    return LayerStep(kind, 0, kernel, stride, _pair(stream, step.padding, square, 0))


def _code_convolution(stream: Stream, step: LayerStep, channels: int) -> LayerStep:
    usual = code_choice(stream, step == LayerStep("conv", step.outputs, step.kernel[:1] * 2), USUAL)
    square = bool(usual or code_choice(stream, _is_square(step), USUAL))
    kernel = _pair(stream, step.kernel, square, 1, 2)
    if usual:
        return LayerStep("conv", 1 + _number(stream, step.outputs - 1, 2), kernel)
    stride, padding = _pair(stream, step.stride, square, 1), _pair(stream, step.padding, square, 0)
    kind = 0 if step.groups == 1 else 1 if step.groups == channels else 2
    kind = code_choice(stream, kind, GROUPS)
    groups = (1, channels)[kind] if kind < 2 else 1 + _number(stream, step.groups - 1, 1)
    outputs = groups * (1 + _number(stream, step.outputs // groups - 1, 2 if kind == 0 else 0))
    return LayerStep("conv", outputs, kernel, stride, padding, groups, bool(code_choice(stream, step.bias, EVEN)))


def _is_square(step: LayerStep) -> bool:
    return all(pair[0] == pair[1] for pair in (step.kernel, step.stride, step.padding))


def _pair(stream: Stream, pair: tuple[int, int], square: bool, lowest: int, width: int = 0) -> tuple[int, int]:
    """Code two numbers from the lowest on, or one for both."""
    first = lowest + _number(stream, pair[0] - lowest, width)
    return first, first if square else lowest + _number(stream, pair[1] - lowest, width)


def _at_most(count: int, most: int) -> int:
    if count > most:
        raise ValueError(f"it has {count} parts where there are at most {most}.")
    return count
