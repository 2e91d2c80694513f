"""Build the kit's networks by name; each takes images (N, 1, 28, 28), gives logits (N, 10) and knows what it is."""

import itertools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_lab.errors import ParameterError, check_choice, check_that, check_whole_number
from kd_lab.networks.checks import check_model
from kd_lab.networks.layers import weighted_layers
from kd_lab.networks.recurrent import RowReader
from kd_lab.networks.transformer import Patches, TokenMean, TransformerBlock

STUDENT = re.compile(r"784-([1-9]\d{0,4})-10")  # the architecture of a small student
LOW_RANK = re.compile(r"(.+)/([\w.]+)=([1-9]\d{0,4})")  # that of a network with two thin layers for one
SMALL_SIDES = {2: 2, 3: 1}  # pixels in a row behind three small convolutions, by the stride of the first


def mlp128() -> nn.Module:
    """Build 784-128-10, the smallest network of the kit."""
    return sequence(*_fully_connected(784, 128, 10))


def lenet300() -> nn.Module:
    """Build LeNet-300-100, the fully connected network of LeCun et al. (1998)."""
    return sequence(*_fully_connected(784, 300, 100, 10))


def cnn() -> nn.Module:
    """Build a small convolutional network: 16 and 32 channels of 3×3, then 128 units."""
    convolutions = *_convolution(1, 16, 3, padding=1), *_convolution(16, 32, 3, padding=1)
    return sequence(*convolutions, *_fully_connected(32 * 7 * 7, 128, 10))


def lenet5() -> nn.Module:
    """Build LeNet-5 as Caffe's example has it (20-50-500), which the pruning papers call LeNet-5."""
    return sequence(*_convolution(1, 20, 5), *_convolution(20, 50, 5), *_fully_connected(50 * 4 * 4, 500, 10))


def lenet5_classic() -> nn.Module:
    """Build LeNet-5 with the widths of LeCun et al. (1998), 6-16-120-84, with ReLU and max-pooling."""
    convolutions = *_convolution(1, 6, 5, padding=2), *_convolution(6, 16, 5)
    return sequence(*convolutions, *_fully_connected(16 * 5 * 5, 120, 84, 10))


def resnet() -> nn.Module:
    """Build a tiny residual network (He et al. 2016): BatchNorm, two residual additions, no large Linear layer."""
    first = *_normalised(1, 16), nn.ReLU(), nn.MaxPool2d(2), Residual(16)
    second = *_normalised(16, 48), nn.ReLU(), nn.MaxPool2d(2), Residual(48)
    return sequence(*first, *second, nn.AdaptiveAvgPool2d(1), *_fully_connected(48, 10))


def lstm() -> nn.Module:
    """Build a recurrent network that reads an image row by row: an LSTM of 128 units, then 10 outputs."""
    return RowReader(128)


def vit() -> nn.Module:
    """Build a small vision transformer: 16 tokens; 3 blocks of 64 features, 4 heads and 128 hidden units."""
    blocks = [TransformerBlock(64, num_heads=4, hidden=128) for _ in range(3)]
    return sequence(Patches(16, 64), *blocks, nn.LayerNorm(64), TokenMean(), nn.Linear(64, 10))


class Residual(nn.Module):
    """Add what two normalised convolutions make of x to x itself; the shape (N, C, H, W) stays."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = sequence(*_normalised(channels, channels), nn.ReLU(), *_normalised(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _convolution(inputs: int, outputs: int, size: int, padding: int = 0) -> list[nn.Module]:
    # max(relu(x)) is relu(max(x)): pooling first gives the same numbers and leaves ReLU a quarter of the work
    return [nn.Conv2d(inputs, outputs, size, padding=padding), nn.MaxPool2d(2), nn.ReLU()]


def _fully_connected(*sizes: int) -> list[nn.Module]:
    """Return Linear layers of these sizes on flattened inputs, with ReLU between them."""
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return [nn.Flatten(), *layers[:-1]]


def _normalised(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]


KINDS = {
    nn.Conv2d: "conv",
    nn.Linear: "fc",  # fully connected
    nn.BatchNorm2d: "norm",
    nn.LayerNorm: "norm",
    nn.ReLU: "relu",
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "mean",
    nn.Flatten: "flatten",
    Residual: "block",
    Patches: "patches",
    TransformerBlock: "block",
    TokenMean: "mean",
}


def sequence(*layers: nn.Module) -> nn.Sequential:
    """Return the layers one after another, each named by its kind and counted: conv1, pool1, conv2, …

    A layer that comes a second time has a second name, and the same tensors under it.
    """
    counts: Counter[str] = Counter()
    named = nn.Sequential()
    for layer in layers:
        kind = KINDS[type(layer)]
        counts[kind] += 1
        alone = kind in ("flatten", "mean", "patches") and counts[kind] == 1
        named.add_module(kind if alone else f"{kind}{counts[kind]}", layer)
    return named


MODELS: dict[str, Callable[[], nn.Module]] = {
    build.__name__: build for build in (mlp128, lenet300, cnn, lenet5, lenet5_classic, resnet, lstm, vit)
}


def build_model(name: str, seed: int = 0) -> nn.Module:
    """Build a network by its name with the initial weights that belong to `seed`.

    Its attribute `architecture` is the name, which copies, training, pruning and files keep. Convolutions are laid out
    `channels_last`, which is what makes them fast on a CPU.
    """
    check_choice("name", name, list(MODELS))
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    with initial_weights(seed):
        model = MODELS[name]().to(memory_format=torch.channels_last)
    model.architecture = name
    return model


@contextmanager
def initial_weights(seed: int):
    """Draw weights that belong to a seed, in float32 and ready to be trained, whatever surrounds the call.

    The caller's random numbers and default dtype stay as they were.
    """
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # whose tensors could never be trained
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@torch.inference_mode(False)  # see above
def small_student(width: int = 30, seed: int = 0) -> nn.Module:
    """Build 784-width-10, of 1 to 10,000 hidden units, with the initial weights that belong to `seed`.

    They are those that torch itself would draw, but no global random numbers are used, so that it may be built in the
    background. Its attribute `architecture` is "784-30-10", say.
    """
    width = check_whole_number("width", width, "[1, 10000]")
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    sizes = (784, width), (width, 10)
    hidden, output = (nn.utils.skip_init(nn.Linear, *each, dtype=torch.float32) for each in sizes)
    generator = torch.Generator().manual_seed(seed)
    for layer in (hidden, output):
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    student = sequence(nn.Flatten(), hidden, nn.ReLU(), output)
    student.architecture = f"784-{width}-10"
    return student


def small_convolutions(widths: Sequence[int], seed: int = 0, *, kernel: int = 5, stride: int = 2) -> nn.Sequential:
    """Build three convolutions of these widths and a Linear layer, with the initial weights that belong to `seed`.

    The first has a `kernel` of 1, 3, 5 or 7 pixels a side and a `stride` of 2 or 3; the others have 3×3. Each has a
    BatchNorm behind it, to be folded. With a few channels it is what the smallest files begin with.
    """
    first, second, third = _check_widths(widths, "three", 3, 3)
    check_that("kernel", kernel, kernel in (1, 3, 5, 7), "1, 3, 5 or 7")
    check_that("stride", stride, stride in tuple(SMALL_SIDES), "2 or 3")
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    with initial_weights(seed):
        return sequence(
            *(nn.Conv2d(1, first, kernel, stride, kernel // 2), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 3), nn.BatchNorm2d(second), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(second, third, 3), nn.BatchNorm2d(third), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(third * SMALL_SIDES[stride] ** 2, 10)),
        )


def separable_convolutions(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Build a 3×3 convolution, separable ones and a Linear layer of these widths, with the weights of `seed`.

    Two to six `widths` are the outputs of the first and of the others. A separable convolution has a 3×3 window for
    each channel alone, and 1×1 windows that mix the channels: a sixth of a full one's weights with 16 channels, and
    no less than a ninth (MobileNets, arXiv 1704.04861, section 3.1). Each has a BatchNorm behind it, to be
    folded. Max pooling follows the first, and the mean of all pixels the last.
    """
    first, *_, last = widths = _check_widths(widths, "two to six", 2, 6)
    seed = check_whole_number("seed", seed, "[0, 1000000]")
    with initial_weights(seed):
        return sequence(
            *(nn.Conv2d(1, first, 3, padding=1), nn.BatchNorm2d(first), nn.MaxPool2d(2), nn.ReLU()),
            *(layer for before, after in itertools.pairwise(widths) for layer in _separable(before, after)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10)),
        )


def _check_widths(widths: Sequence[int], said: str, fewest: int, most: int) -> list[int]:
    fits = isinstance(widths, (tuple, list)) and fewest <= len(widths) <= most
    check_that("widths", widths, fits, f"{said} whole numbers")
    return [check_whole_number(f"widths[{place}]", width, "[1, 1000]") for place, width in enumerate(widths)]


def _separable(inputs: int, outputs: int) -> list[nn.Module]:
    by_channel = nn.Conv2d(inputs, inputs, 3, groups=inputs, bias=False)  # the next one's bias does for both
    return [by_channel, nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


def build_architecture(architecture: str) -> nn.Module:
    """Build the network, dense, with initial weights, whose `architecture` this is.

    "lenet5", say, or "784-30-10", or "lenet5/fc1=20/fc2=5", in which fc1 and fc2 are two thin layers each, of ranks 20
    and 5.
    """
    if match := STUDENT.fullmatch(str(architecture)):
        return small_student(int(match[1]))
    if match := LOW_RANK.fullmatch(str(architecture)):
        layers = replaceable_layers(model := build_architecture(match[1]))
        check_choice("layer of the architecture", match[2], list(layers))
        model.set_submodule(match[2], thin_layers(layers[match[2]], int(match[3])))
        model.architecture = architecture
        return model
    check_choice("architecture", architecture, [*MODELS, "784-30-10"])
    return build_model(architecture)


def replaceable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network of the kit that two thin ones can stand for, by name."""
    return {name: layer for name, layer in weighted_layers(model).items() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def thin_layers(layer: nn.Module, rank: int) -> nn.Sequential:
    """Build the two layers that can stand for one, a Linear layer or a convolution without groups.

    `first` goes from its inputs to as many numbers as `rank` says, and `second` from these to its outputs. Raises a
    ParameterError for a rank that is above the layer's.
    """
    check_whole_number("rank", rank, f"[1, {min(len(layer.weight), layer.weight[0].numel())}]")
    with initial_weights(0):
        if isinstance(layer, nn.Linear):
            first = nn.Linear(layer.in_features, rank, bias=False)
            second = nn.Linear(rank, layer.out_features, layer.bias is not None)
        else:
            window = layer.kernel_size, layer.stride, layer.padding, layer.dilation
            kind, padded = type(layer), {"padding_mode": layer.padding_mode}
            first = kind(layer.in_channels, rank, *window, bias=False, **padded)
            second = kind(rank, layer.out_channels, 1, bias=layer.bias is not None)
    thin = nn.Sequential(OrderedDict(first=first, second=second)).to(layer.weight)
    return thin.to(memory_format=torch.channels_last) if layer.weight.dim() == 4 else thin


def architecture_of(model: nn.Module) -> str:
    """Return the architecture of a network of the kit; raise a ParameterError for any other network."""
    check_model(model)
    if not isinstance(architecture := getattr(model, "architecture", None), str):
        raise ParameterError(
            "'model' must be a network of the kit, as build_model(), small_student() and load_trained() give, pruned "
            f"or quantized or not. Got a {type(model).__name__} that carries no architecture."
        )
    return architecture


def old_names(model: nn.Module) -> dict[str, str]:
    """Return the names of a network's modules by those of version 0.1, which were places in a list: {"0": "conv1"}."""
    found: dict[str, str] = {}
    for place, (name, child) in enumerate(model.named_children()):
        old = str(place) if isinstance(model, nn.Sequential) else name
        found |= {old: name} | {f"{old}.{key}": f"{name}.{value}" for key, value in old_names(child).items()}
    return found


def with_new_names(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a file of version 0.1 under the names that this network's modules have now."""
    names = old_names(model)

    def renamed(key: str) -> str:
        innermost = max((old for old in names if key.startswith(f"{old}.")), key=len, default="")
        return names.get(innermost, "") + key.removeprefix(innermost)

    return {renamed(key): tensor for key, tensor in tensors.items()}
