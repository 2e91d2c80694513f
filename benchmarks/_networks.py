"""Write random networks as learners write them: as source text, one line after another, each of which torch has tried.

Whatever goes wrong with such a network, its text is the smallest program that shows it. What chance has to decide is
asked of `choose(options)`: that of a random.Random, or of hypothesis, which then makes a failing network smaller.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import indent
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

Choose = Callable[[Sequence[Any]], Any]
COUNT = 24  # images
VOCABULARY = 7  # words, of the networks that read text
IMAGES = (1, 28, 28), (1, 8, 8), (2, 7, 5), (3, 9, 9)
SHAPES = *IMAGES, (17,), (3, 12), (2, 5, 6, 7), "words"  # the simplest first: it is what hypothesis looks for

# What a word in braces may become. Others say what the data are by then: c, d, n, last and dims are their channels,
# dimensions, numbers, last size, and the dimensions of a map.
CHOICES = {
    "out": (4, 2, 3, 6),
    "size": (3, 1, 2, 5),
    "padding": (1, 0),
    "stride": (1, 2),
    "bias": (True, False),
    "add": ("x = x + ", "x += ", "x = torch.add(x, 1) + "),
    "relu": ("F.relu", "torch.relu", "torch.relu_", "«nn.ReLU()»", "«nn.ReLU(inplace=True)»", "«nn.LeakyReLU(0.1)»"),
    "smooth": ("torch.tanh", "«nn.GELU()»", "«nn.SiLU()»", "torch.sigmoid", "«nn.Softplus()»", "«nn.PReLU()»"),
    "pool": ("«nn.MaxPool{d}d(2)»", "«nn.AvgPool{d}d(2)»", "F.max_pool{d}d", "«nn.AdaptiveAvgPool{d}d(2)»"),
    "flat": ("x.flatten(1)", "x.view(-1, {n})", "x.view(len(x), -1)", "x.reshape(-1, {n})", "«nn.Flatten()»(x)"),
}
# Lines of a forward, by what is special about them; what stands in «» is made in the constructor.
PLAIN_MAPS = {"convolution": "x = {relu}(«nn.Conv{d}d({c}, {out}, {size}, {stride}, {padding}, bias={bias})»(x))"}
PLAIN_VECTORS = {"Linear": "x = {relu}(«nn.Linear({n}, {out}, bias={bias})»(x))"}
ANYWHERE = {
    "activation": "x = {relu}(x)",
    "smooth activation": "x = {smooth}(x)",
    "dropout": "x = «nn.Dropout(0.3)»(x)",
    "functional dropout": "x = F.dropout(x, 0.3, self.training)",
    "kept activation": "self.kept = x = x * 2",
    "branch": "if x.shape[-1] > 3:\n    x = x * 2",
    "LayerNorm": "x = «nn.LayerNorm({last})»(x)",
    "unused layer": "# «nn.Linear(3, 3)» is never run",
    "custom train": "x = «Moody()»(x)",
    "lock": "x = «Locked()»(x)",
}
VECTORS = {
    "BatchNorm1d": "x = «nn.BatchNorm1d({n})»(x)",
    "residual Linear": "{add}«nn.Linear({n}, {n})»(x)",
    "shared Linear": "linear = «nn.Linear({n}, {n})»\nx = linear({relu}(linear(x)))",
    "tied Linear": "x = «tied(nn.Linear({n}, {n}), nn.Linear({n}, {n}))»(x)",
    "scaled Linear": "x = «Scaled({n}, {out})»(x)",
    "low rank": "x = «LowRank({n}, {out})»(x)",
    "hooked Linear": "x = «hooked(nn.Linear({n}, {out}))»(x)",
    "frozen Linear": "x = «frozen(nn.Linear({n}, {out}))»(x)",
    "spectral norm": "x = «nn.utils.parametrizations.spectral_norm(nn.Linear({n}, {out}))»(x)",
    "weight norm": "x = «nn.utils.parametrizations.weight_norm(nn.Linear({n}, {out}))»(x)",
    "looped Sequential": (
        "for layer in «nn.Sequential(nn.Linear({n}, 5), nn.Linear(5, {out}))»:\n    x = {relu}(layer(x))"
    ),
    "auxiliary Linear": "if self.training:\n    x = x + «nn.Linear({n}, 1)»(x).mean()",
    "folded Sequential": "x = «nn.Sequential(nn.Linear({n}, {out}), nn.BatchNorm1d({out}), nn.ReLU())»(x)",
}
MAPS = {
    "pool": "x = {pool}(x)",
    "BatchNorm": "x = «nn.BatchNorm{d}d({c})»(x)",
    "GroupNorm": "x = «nn.GroupNorm(1, {c})»(x)",
    "depthwise": "x = «nn.Conv{d}d({c}, 2 * {c}, 3, padding=1, groups={c})»(x)",
    "grouped": "x = «nn.Conv{d}d({c}, 4, 3, padding=1, groups=2)»(x)",
    "dilated": "x = «nn.Conv{d}d({c}, {out}, 2, dilation=2, padding_mode='circular', padding=1)»(x)",
    "transposed": "x = «nn.ConvTranspose{d}d({c}, {out}, 2, {stride})»(x)",
    "normalised": "x = «nn.Sequential(nn.Conv{d}d({c}, {out}, 3), nn.BatchNorm{d}d({out}), nn.ReLU(inplace=True))»(x)",
    "residual": "{add}«nn.Sequential(nn.Conv{d}d({c}, {c}, 3, padding=1), nn.ReLU(inplace=True))»(x)",
    "block": "x = «Block(nn.Conv{d}d({c}, {c}, 3, padding=1))»(x)",
    "shared convolution": "conv = «nn.Conv{d}d({c}, {c}, 3, padding=1)»\nx = conv({relu}(conv(x)))",
    "standardised": "x = «Standardised({c}, {out}, 3, padding=1)»(x)",
    "hooked convolution": "x = «hooked(nn.Conv{d}d({c}, {out}, 1))»(x)",
    "read twice": "y = «nn.Conv{d}d({c}, {c}, 1)»(x)\nx = «nn.BatchNorm{d}d({c})»(y) * y",
    "out of order": (
        "norm, conv = «nn.ModuleList([nn.BatchNorm{d}d({c}), nn.Conv{d}d({c}, {c}, 1)])»\nx = norm(conv(x)) + x"
    ),
    "concatenated": "x = torch.cat([x, «nn.Conv{d}d({c}, {out}, 1)»(x)], 1)",
    "gate": "x = x * torch.sigmoid(«nn.Conv{d}d({c}, {c}, 1)»(x))",
    "looped normalised": (
        "for layer in «nn.Sequential(nn.Conv{d}d({c}, {out}, 1), nn.BatchNorm{d}d({out}))»:\n    x = {relu}(layer(x))"
    ),
    "auxiliary convolution": "if self.training:\n    x = x + «nn.Conv{d}d({c}, 1, 1)»(x)",
    "swapped axes": "x = x.transpose(1, -1)",
}
SEQUENCES = {
    "GRU": "x, _ = «nn.GRU({last}, {out}, batch_first=True)»(x)",
    "LSTM": "x, _ = «nn.LSTM({last}, {out}, batch_first=True, bidirectional=True)»(x)",
    "Transformer": "x = «nn.TransformerEncoderLayer({last}, 1, 8, batch_first=True)»(x)",
    "attention": "x = x + «nn.MultiheadAttention({last}, 1, batch_first=True)»(x, x, x)[0]",
    "Linear on sequences": "x = «nn.Linear({last}, {out})»(x)",
}
ENDS = {
    "flattened": "x = {flat}",
    "averaged": "x = x.mean({dims})",
    "pooled and flattened": "x = {pool}(x)\nx = x.view(x.size(0), -1)",
}
LAST = {
    "": "x = «nn.Linear({n}, {classes})»(x)",
    "log_softmax": "x = F.log_softmax(«nn.Linear({n}, {classes})»(x), dim=1)",
}
CLASSES = 10, 3
STATES = {  # what is done to the network once it is made
    "": "",
    "evaluation mode": "model.eval()",
    "channels_last": "model.to(memory_format=torch.channels_last)",
    "gradients": "for parameter in model.parameters():\n    parameter.grad = torch.ones_like(parameter)",
    "partly frozen": "next(model.parameters()).requires_grad_(False)",
    "partly in evaluation mode": "next(model.children()).eval()",
}
TRAINED_NORMS = """\
for module in model.modules():
    if hasattr(module, "running_var"):
        for tensor in [module.weight, module.bias, module.running_mean, module.running_var]:
            nn.init.uniform_(tensor, 0.5, 1.5)
"""
DEFINITIONS = {  # put before a network that uses them
    "Scaled": """\
class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)
""",
    "LowRank": """\
class LowRank(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))
""",
    "Standardised": """\
class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return self._conv_forward(x, weight, self.bias)
""",
    "Block": """\
class Block(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.relu = body, nn.ReLU(inplace=True)

    def forward(self, x):
        x = x + self.body(self.relu(x))
        return self.relu(x)
""",
    "Moody": """\
class Moody(nn.Module):
    noisy = True

    def train(self, mode=True):
        self.noisy = mode
        return super().train(mode)

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.noisy else x
""",
    "Locked": """\
class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return 2 * x
""",
    "hooked": """\
def hooked(layer):
    layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return layer
""",
    "frozen": """\
def frozen(layer):
    return layer.requires_grad_(False)
""",
    "tied": """\
def tied(first, second):
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)
""",
}


@dataclass(frozen=True, repr=False)
class Network:
    """A network as its author wrote it: the text, which makes `model`, what it reads, and what is special about it."""

    source: str
    shape: tuple[int, ...]
    classes: int
    kinds: tuple[str, ...]
    reads_words: bool = False

    def __repr__(self) -> str:
        return f"# reads {self.shape}; {', '.join(self.kinds)}\n{self.source}"

    def build(self, seed: int = 0) -> nn.Module:
        """Build it, always with the same weights for the same seed."""
        namespace = {"__name__": "written"}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes as long as all the rest
            exec(_compiled(self.source), namespace)
        return namespace["model"]

    def data(self, seed: int = 0, count: int = COUNT) -> tuple[Tensor, Tensor]:
        """Return a few inputs with labels, always the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        if self.reads_words:
            inputs = torch.randint(VOCABULARY, (count, *self.shape), generator=generator)
        else:
            inputs = torch.randn(count, *self.shape, generator=generator)
        return inputs, torch.arange(count) % self.classes


@functools.lru_cache(maxsize=2)
def _compiled(source: str) -> CodeType:
    return compile(source, "written", "exec")


def random_network(choose: Choose) -> Network:
    """Write a network of up to eight pieces that `choose` takes one after another."""
    author = Author(choose, choose(SHAPES))
    for _ in range(choose(range(8))):
        author.add_one_of(author.pieces(special=choose((False, True))))
    if len(author.shape) > 1:
        author.add_one_of(ENDS)
    if len(author.shape) > 1:  # that was struck out
        author.add_one_of({"": "x = x.flatten(1)"})
    for _ in range(choose(range(3))):
        author.add_one_of(author.pieces(special=choose((False, True))))
    author.add_one_of(LAST)
    author.set_state(choose(list(STATES)))
    return author.network()


class Author:
    """Write a network piece by piece; what torch refuses to run is struck out again."""

    def __init__(self, choose: Choose, shape: tuple[int, ...] | str):
        self.choose, self.classes, self.kinds = choose, choose(CLASSES), []
        self.reads_words = shape == "words"
        self.layers, self.steps = [], []  # lines of the constructor and of the forward
        self.state = ""
        self.shape = self.input_shape = (9,) if self.reads_words else shape
        if self.reads_words:
            self.add_one_of({"Embedding": f"x = «nn.Embedding({VOCABULARY}, {{out}})»(x)"})

    def pieces(self, special: bool) -> dict[str, str]:
        """Return the pieces that are made for data of as many dimensions."""
        if len(self.shape) == 1:
            return VECTORS | ANYWHERE if special else PLAIN_VECTORS
        if len(self.shape) == 2 and self.reads_words:
            return SEQUENCES | MAPS | ANYWHERE if special else SEQUENCES | PLAIN_MAPS
        return MAPS | ANYWHERE if special else PLAIN_MAPS

    def add_one_of(self, pieces: dict[str, str]) -> None:
        """Write a piece, unless torch can't run the network with it."""
        kind = self.choose(list(pieces))
        layers, steps, shape = [*self.layers], [*self.steps], self.shape
        self.steps += self._fill_in(pieces[kind]).splitlines()
        if not self._tried(kind):
            self.layers, self.steps, self.shape = layers, steps, shape

    def set_state(self, state: str) -> None:
        """Put the network into one of STATES, unless torch can't run it then."""
        self.state = STATES[state]
        if not self._tried(state):
            self.state = ""

    def _fill_in(self, text: str) -> str:
        """Choose for every word in braces, and make in the constructor what stands in «»."""
        shape = self.shape
        words = {"c": shape[0], "d": len(shape) - 1, "last": shape[-1], "n": torch.Size(shape).numel()}
        words |= {"dims": tuple(range(2, len(shape) + 1)), "classes": self.classes}
        while open_words := re.findall(r"{(\w+)}", text):
            for word in open_words:
                value = words[word] if word in words else words.setdefault(word, self.choose(CHOICES[word]))
                text = text.replace(f"{{{word}}}", str(value))
        return re.sub("«(.+?)»", lambda match: self._layer(match[1]), text)

    def _layer(self, expression: str) -> str:
        name = f"self.layer{len(self.layers) + 1}"
        self.layers.append(f"{name} = {expression}")
        return name

    def _tried(self, kind: str) -> bool:
        """Return whether torch runs the network as far as it is written, in both modes; note its kind and its shape."""
        network = self.network()
        try:
            for training, count in ((True, 3), (False, 5)):
                outputs = network.build().train(training)(network.data()[0][:count])
                if len(outputs) != count or outputs.dim() < 2:  # it took the images for channels
                    return False
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False
        self.shape = tuple(outputs.shape[1:])
        self.kinds += [kind] if kind and kind not in self.kinds else []
        return True

    def network(self) -> Network:
        """Return the network as it is written by now."""
        layers, steps = (indent("\n".join(lines), " " * 8) for lines in (self.layers, self.steps))
        network = NETWORK.format(layers=layers, steps=steps)
        definitions = [text for name, text in DEFINITIONS.items() if f"{name}(" in network]
        norms = TRAINED_NORMS if "BatchNorm" in network else ""
        imports = f"import threading\n\n{IMPORTS}" if "Locked(" in network else IMPORTS
        source = "\n\n".join([imports, *definitions, network]) + norms + self.state
        return Network(source, self.input_shape, self.classes, tuple(self.kinds), self.reads_words)


IMPORTS = """\
import torch
import torch.nn.functional as F
from torch import nn
"""
NETWORK = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
{layers}

    def forward(self, x):
{steps}
        return x


model = Net()
"""


def _named(source: str, shape: tuple[int, ...] = (1, 28, 28), reads_words: bool = False) -> Network:
    return Network(f"{IMPORTS}\n\n{source}", shape, 10, ("by name",), reads_words)


NAMED = {
    "resnet18": _named("""\
import torchvision

model = torchvision.models.resnet18(weights=None, num_classes=10)
model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
"""),
    "mobilenet_v2": _named("""\
import torchvision

model = torchvision.models.mobilenet_v2(weights=None, num_classes=10)
model.features[0][0] = nn.Conv2d(1, 32, 3, stride=2, padding=1, bias=False)
"""),
    "pytorch_mnist": _named("""\
class Net(nn.Module):  # github.com/pytorch/examples, mnist/main.py
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(x)
        x = self.conv2(x)
        x = F.relu(x)
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = self.fc1(x)
        x = F.relu(x)
        x = self.dropout2(x)
        x = self.fc2(x)
        output = F.log_softmax(x, dim=1)
        return output


model = Net()
"""),
    "keras_mnist": _named("""\
class Net(nn.Module):  # keras.io/examples/vision/mnist_convnet
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(64 * 5 * 5, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 64 * 5 * 5)
        return F.softmax(self.fc(self.dropout(x)), dim=1)


model = Net()
"""),
    "lenet": _named("""\
class LeNet(nn.Module):  # as PyTorch's "60 minute blitz" has it
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


model = LeNet()
"""),
    "bidirectional_lstm": _named("""\
class RNN(nn.Module):  # reads an image row by row
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(28, 32, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = x.squeeze(1)
        h0 = torch.zeros(4, x.size(0), 32)
        c0 = torch.zeros(4, x.size(0), 32)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1, :])


model = RNN()
"""),
    "text_classifier": _named(
        f"""\
class TextClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding({VOCABULARY}, 16, padding_idx=0)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, words):
        x = self.embedding(words).mean(dim=1)
        return self.fc2(F.relu(self.fc1(x)))


model = TextClassifier()
""",
        (12,),
        reads_words=True,
    ),
}
