"""Read a packed file with nothing but Python: a second decoder, written from kd_lab/formats/KDZ.md alone.

It shares no code with the kit, and needs neither torch nor numpy nor constriction, so where both read the same numbers
from a file, the page says how, and both do so.
"""

import hashlib
import math
import struct
from typing import Any

FULL, PROBABILITY, WORD = 2**64 - 1, 2**24, 2**32
NETWORKS = ["sequence", "student", "mlp128", "lenet300", "cnn", "lenet5", "lenet5_classic", "resnet", "lstm", "vit"]
KINDS = ["end", "conv", "linear", "max_pool", "average_pool", "mean", "relu", "flatten", "norm", "again"]
FOLLOWING = {
    "none": (1, 80, 1, 2, 4, 1, 1, 16, 2, 1),
    "conv": (1, 24, 1, 20, 4, 4, 36, 4, 10, 4),
    "linear": (60, 1, 4, 1, 1, 1, 36, 1, 1, 2),
    "max_pool": (1, 36, 1, 1, 1, 2, 44, 12, 2, 6),
    "average_pool": (1, 36, 1, 1, 1, 2, 44, 12, 2, 6),
    "mean": (1, 4, 1, 1, 1, 1, 8, 90, 1, 1),
    "relu": (2, 40, 14, 14, 3, 10, 1, 8, 2, 8),
    "flatten": (20, 1, 90, 1, 1, 1, 2, 1, 1, 1),
    "norm": (1, 10, 1, 24, 2, 4, 60, 2, 1, 2),
}
OF_THE_KIT = {
    "student": "flatten fc{} relu fc10",
    "mlp128": "flatten fc128 relu fc10",
    "lenet300": "flatten fc300 relu fc100 relu fc10",
    "cnn": "conv16,3,1 pool relu conv32,3,1 pool relu flatten fc128 relu fc10",
    "lenet5": "conv20,5,0 pool relu conv50,5,0 pool relu flatten fc500 relu fc10",
    "lenet5_classic": "conv6,5,2 pool relu conv16,5,0 pool relu flatten fc120 relu fc84 relu fc10",
}
SHORT = {"linear": "fc", "max_pool": "pool", "average_pool": "pool"}
LEVELS = 1, 2, 3, 5, 9, 17, 33
Layer = dict[str, Any]


def decode(content: bytes) -> tuple[str, list[Layer], dict[str, list]]:
    """Return the name of a file's network, its layers, and its tensors by name, each as rows of numbers.

    Reads schema 4, and of schemas 2 and 3 what the range coder wrote; of the kit's networks those that are sequences.
    """
    assert content[:3] == b"kdz"
    schema = content[3:4]
    start = {b"2": 20, b"3": 20, b"4": 8}[schema]
    body = content[start:]
    assert hashlib.sha256(body).digest()[: start - 4] == content[4:start]
    if schema != b"4":
        return decode_line(body, by_places=schema == b"2")
    stream = Stream(body)
    name, layers = network(stream)
    tensors, habits = {}, {}
    for title, shape in shapes(layers):
        tensors[title] = on_grid_or_by_values(stream, habits, shape)
    return name, layers, tensors


# ---- the range decoder


class Stream:
    def __init__(self, body: bytes, order: str = "big"):
        self.body, self.place, self.order = body, 0, order
        self.range, self.point = FULL, 0
        for _ in range(2):
            self.point = self.point * WORD + self.word()

    def word(self) -> int:
        taken = self.body[self.place : self.place + 4]
        self.place += 4
        return int.from_bytes(taken + bytes(4 - len(taken)), self.order)

    def quantile(self) -> int:
        found = self.point // (self.range // PROBABILITY)
        assert found < PROBABILITY
        return found

    def take(self, left: int, size: int) -> None:
        scale = self.range // PROBABILITY
        self.point -= scale * left
        self.range = scale * size
        if self.range < WORD:
            self.range *= WORD
            self.point = self.point * WORD + self.word()
            assert self.place - 16 <= len(self.body)

    def choice(self, *counts: int) -> int:
        factor = (PROBABILITY - len(counts)) / sum(counts)
        quantile, left, before = self.quantile(), 0, 0
        for symbol, count in enumerate(counts):
            before += count
            right = int(before * factor) + symbol + 1 if symbol + 1 < len(counts) else PROBABILITY
            if quantile < right:
                break
            left = right
        self.take(left, right - left)
        return symbol

    def whole(self, n: int) -> int:
        if n == 1:
            return 0
        size = PROBABILITY // n
        found = min(self.quantile() // size, n - 1)
        self.take(found * size, size if found < n - 1 else PROBABILITY - found * size)
        return found

    def number(self, w: int) -> int:
        b = w + self.choice(*(2**power for power in range(15, -1, -1)))
        return self.whole(2**b) + 2**b - 2**w


# ---- what the network is


def network(stream: Stream) -> tuple[str, list[Layer]]:
    name = NETWORKS[stream.choice(22, *[1] * 31)]
    if name == "sequence":
        return name, sequence(stream)
    units = 1 + stream.number(5) if name == "student" else 0
    layers = of_the_kit(OF_THE_KIT[name].format(units))
    name = f"784-{units}-10" if name == "student" else name
    for _ in range(stream.number(0)):
        name = f"{name}/{make_thin(layers, stream.whole(len(weighted(layers))), 1 + stream.number(4))}"
    modules = module_names(layers)
    gone = [modules[stream.whole(len(modules))] for _ in range(stream.number(0))]
    take_out(layers, gone)
    for layer in weighted(layers)[:-1]:
        if layer["outputs"] > 1 and stream.choice(1, 1):
            layer["outputs"] = 1 + stream.whole(layer["outputs"] - 1)
    for layer in weighted(layers):
        layer["bias"] = layer["bias"] or bool(stream.choice(7, 1))
    return name, layers


def sequence(stream: Stream) -> list[Layer]:
    layers: list[Layer] = []
    before = "none"
    while (kind := KINDS[stream.choice(*FOLLOWING[before], *[1] * 6)]) != "end":
        channels = reads(layers)[-1][0]
        layer = {"kind": kind}
        if kind == "conv":
            layer |= convolution(stream, channels)
        elif kind == "linear":
            layer |= {"outputs": 1 + stream.number(2), "bias": not stream.choice(7, 1)}
        elif kind in ("max_pool", "average_pool"):
            layer |= pool(stream)
        elif kind == "again":
            earlier = [each for each in layers if each["kind"] in ("conv", "linear", "norm") and "again" not in each]
            first = earlier[stream.whole(len(earlier))]
            layer = {**first, "again": first["name"]}
        layer["name"] = named(layers, layer["kind"])
        layers.append(layer)
        before = layer["kind"]
    return layers


def named(layers: list[Layer], kind: str) -> str:
    short = SHORT.get(kind, kind)
    count = 1 + sum(SHORT.get(each["kind"], each["kind"]) == short for each in layers)
    return short if short in ("flatten", "mean") and count == 1 else f"{short}{count}"


def pair(stream: Stream, lowest: int, w: int, square: bool) -> tuple[int, int]:
    first = lowest + stream.number(w)
    return first, first if square else lowest + stream.number(w)


def convolution(stream: Stream, channels: int) -> Layer:
    usual = stream.choice(1, 3)
    square = bool(usual or stream.choice(1, 3))
    window = {"kernel": pair(stream, 1, 2, square), "stride": (1, 1), "padding": (0, 0)}
    if usual:
        return {**window, "groups": 1, "outputs": 1 + stream.number(2), "bias": True}
    window["stride"] = pair(stream, 1, 0, square)
    window["padding"] = pair(stream, 0, 0, square)
    which = stream.choice(3, 3, 1)
    groups = 1 + stream.number(1) if which == 2 else (1, channels)[which]
    outputs = groups * (1 + stream.number(0 if which else 2))
    return {**window, "groups": groups, "outputs": outputs, "bias": bool(stream.choice(1, 1))}


def pool(stream: Stream) -> Layer:
    if stream.choice(1, 3):
        return {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    square = bool(stream.choice(1, 3))
    kernel = pair(stream, 1, 0, square)
    stride = kernel if stream.choice(1, 3) else pair(stream, 1, 0, square)
    return {"kernel": kernel, "stride": stride, "padding": pair(stream, 0, 0, square)}


def of_the_kit(text: str) -> list[Layer]:
    layers: list[Layer] = []
    for word in text.split():
        if word.startswith("conv"):
            outputs, size, padding = map(int, word[4:].split(","))
            window = {"kernel": (size, size), "stride": (1, 1), "padding": (padding, padding)}
            layer = {"kind": "conv", **window, "groups": 1, "outputs": outputs, "bias": True}
        elif word.startswith("fc"):
            layer = {"kind": "linear", "outputs": int(word[2:]), "bias": True}
        elif word == "pool":
            layer = {"kind": "max_pool", "kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
        else:
            layer = {"kind": word}
        layer["name"] = named(layers, layer["kind"])
        layers.append(layer)
    return layers


def weighted(layers: list[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer["kind"] in ("conv", "linear")]


def make_thin(layers: list[Layer], which: int, rank: int) -> str:
    layer = weighted(layers)[which]
    first = {**layer, "name": layer["name"] + ".first", "outputs": rank, "bias": False}
    second = {**layer, "name": layer["name"] + ".second"}
    if layer["kind"] == "conv":
        second |= {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0)}
    layers[:] = [part for each in layers for part in ((first, second) if each is layer else (each,))]
    return f"{layer['name']}={rank}"


def module_names(layers: list[Layer]) -> list[str]:
    names: list[str] = []
    for layer in layers:
        parts = layer["name"].split(".")
        names += [name for end in range(1, len(parts) + 1) if (name := ".".join(parts[:end])) not in names]
    return names


def take_out(layers: list[Layer], gone: list[str]) -> None:
    layers[:] = [each for each in layers if not any(f"{each['name']}.".startswith(f"{name}.") for name in gone)]


def reads(layers: list[Layer]) -> list[tuple[int, ...]]:
    """Return the shape of what each layer reads, and at last of what the last one makes."""
    shape: tuple[int, ...] = (1, 28, 28)
    found = [shape]
    for layer in layers:
        if layer["kind"] in ("conv", "max_pool", "average_pool"):
            window = zip(shape[1:], layer["kernel"], layer["stride"], layer["padding"], strict=True)
            sizes = [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in window]
            shape = (layer.get("outputs", shape[0]), *sizes)
        elif layer["kind"] == "mean":
            shape = (shape[0], 1, 1)
        elif layer["kind"] == "flatten":
            shape = (math.prod(shape),)
        elif layer["kind"] == "linear":
            shape = (layer["outputs"],)
        found.append(shape)
    return found


def shapes(layers: list[Layer]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the name and the shape of every tensor in a file."""
    found = []
    for layer, (channels, *_) in zip(layers, reads(layers), strict=False):
        name = layer["name"]
        if "again" in layer:
            continue
        if layer["kind"] == "norm":
            found += [(f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var")]
        elif layer["kind"] in ("conv", "linear"):
            inputs = (channels // layer.get("groups", 1), *layer.get("kernel", ()))
            found.append((f"{name}.weight", (layer["outputs"], *inputs)))
            found += [(f"{name}.bias", (layer["outputs"],))] * layer["bias"]
    return found


# ---- the tensors


def on_grid_or_by_values(stream: Stream, habits: dict, shape: tuple[int, ...]) -> list:
    def habit(name: str, *counts: int) -> int:
        times = habits.setdefault((name, len(shape) > 1), [0] * len(counts))
        found = stream.choice(*(count + 16 * time for count, time in zip(counts, times, strict=True)))
        times[found] += 1
        return found

    rows, columns = shape[0], math.prod(shape[1:])
    if habit("way", 12, 1):
        return by_values(stream, rows, columns)
    bits = habit("bits", 2, 2, 8, 8, 8, 6, 6, 2, 1)
    if bits == 0:
        return [[0.0] * columns for _ in range(rows)]
    step, half = step_of(stream, habit), 2 ** (bits - 1)
    order = order_of(shape, habit)
    if order == "matrix":
        symbols = matrix(stream, rows, columns, 2 * half)
        numbers = [[0 if s == 0 else s - half - 1 if s <= half else s - half for s in row] for row in symbols]
    else:
        decay = habit("decay", *[1] * 8)
        sizes = [(decay + 1) ** abs(k) * 8 ** (half - abs(k)) for k in range(-half, half)]
        counts = [1 + 8192 * size // sum(sizes) for size in sizes]
        if order == "sorted":
            row = rising(stream, rows, counts)
        elif order == "neighbours":
            row = watched(stream, rows, columns, counts, shape[2:])
        else:
            row = alone(stream, rows * columns, counts)
        numbers = [row[place : place + columns] for place in range(0, len(row), columns)]
    assert any(not -half / 2 <= k < half / 2 for row in numbers for k in row)
    return [[single(k * step) for k in row] for row in numbers]


def step_of(stream: Stream, habit) -> float:
    kind = habit("step", 14, 1, 1)
    if kind == 0:
        exponent = habit("exponent", *(max(1, 16 - 2 * abs(e - 5)) for e in range(32)))
        return (8 + stream.whole(8)) / 8 * 2.0**-exponent
    raw = bytes(stream.whole(256) for _ in range(2 * kind))
    return struct.unpack("<e" if kind == 1 else "<f", raw)[0]


def order_of(shape: tuple[int, ...], habit) -> str:
    if len(shape) == 1:
        return ("alone", "sorted")[habit("order of 2", 6, 6)] if 2 <= shape[0] <= 64 else "alone"
    if len(shape) == 4 and math.prod(shape[2:]) > 1 and math.prod(shape) <= 4096:
        return ("alone", "neighbours", "matrix")[habit("order of 3", 6, 4, 1)]
    return ("alone", "matrix")[habit("order of 2", 6, 1)]


def alone(stream: Stream, count: int, counts: list[int]) -> list[int]:
    half, found = len(counts) // 2, []
    while len(found) < count:
        block = [stream.choice(*counts) for _ in range(min(1 + len(found) // 32, count - len(found)))]
        for symbol in block:
            counts[symbol] += 64
        found += block
    return [symbol - half for symbol in found]


def rising(stream: Stream, n: int, counts: list[int]) -> list[int]:
    found: list[int] = []
    for s, c in enumerate(counts):
        t = sum(counts[s + 1 :])
        shares = [math.comb(n, m) * c**m * t ** (n - m) for m in range(n + 1)]
        times = stream.choice(*(1 + 2**20 * share // sum(shares) for share in shares)) if n and t else n
        found += [s - len(counts) // 2] * times
        n -= times
    return found


def watched(stream: Stream, rows: int, columns: int, counts: list[int], window: tuple[int, ...]) -> list[int]:
    half, found = len(counts) // 2, []
    own = {sign: [0] * len(counts) for sign in (-1, 0, 1)}
    high, wide = window
    for place in range(rows * columns):
        p = place % columns
        s = (found[-1] if p % wide else 0) + (found[-wide] if p % (high * wide) >= wide else 0)
        context = own[(s > 0) - (s < 0)]
        total = sum(counts)
        symbol = stream.choice(*(a * total + 30 * b for a, b in zip(context, counts, strict=True)))
        context[symbol] += 1
        counts[symbol] += 64
        found.append(symbol - half)
    return found


def by_values(stream: Stream, rows: int, columns: int) -> list:
    n = stream.whole(258)
    symbols = matrix(stream, rows, columns, n + 1 if n < 257 else 2)
    kept = n if n < 257 else sum(map(sum, symbols))
    code = "<e" if stream.whole(2) else "<f"
    raw = bytes(stream.whole(256) for _ in range(kept * struct.calcsize(code)))
    values = [value for (value,) in struct.iter_unpack(code, raw)]
    if n < 257:
        return [[values[s - 1] if s else 0 for s in row] for row in symbols]
    following = iter(values)
    return [[next(following) if s else 0 for s in row] for row in symbols]


class Adaptive:
    def __init__(self, n: int, contexts: int):
        self.counts, self.all = [[0] * n for _ in range(contexts)], [1] * n

    def likely(self, context: int) -> list[int]:
        total = sum(self.all)
        return [a * total + 30 * b for a, b in zip(self.counts[context], self.all, strict=True)]

    def count(self, context: int, symbol: int) -> None:
        self.counts[context][symbol] += 1
        self.all[symbol] += 1


def matrix(stream: Stream, rows: int, columns: int, size: int) -> list[list[int]]:
    if size == 1:
        return [[0] * columns for _ in range(rows)]
    kept, values = Adaptive(2, 64), Adaptive(size - 1, 1)
    length = max(28, rows * columns // 2**15) if stream.order == "big" else 28
    above, found = [0] * columns, []
    for _ in range(rows):
        row: list[int] = []
        while len(row) < columns:
            places = range(len(row), min(len(row) + length, columns))
            before = level(sum(symbol > 0 for symbol in row))
            contexts = [8 * level(above[place]) + before for place in places]
            block = [stream.choice(*kept.likely(context)) for context in contexts]
            for context, symbol in zip(contexts, block, strict=True):
                kept.count(context, symbol)
            if size > 2:
                likely = values.likely(0)
                coded = [stream.choice(*likely) if symbol else -1 for symbol in block]
                for symbol in coded:
                    if symbol >= 0:
                        values.count(0, symbol)
                block = [symbol + 1 for symbol in coded]
            row += block
        above = [count + (symbol > 0) for count, symbol in zip(above, row, strict=True)]
        found.append(row)
    return found


def level(count: int) -> int:
    return sum(each <= count for each in LEVELS)


def single(number: float) -> float:
    return struct.unpack("<f", struct.pack("<f", number))[0]


# ---- schemas 2 and 3


def decode_line(body: bytes, by_places: bool) -> tuple[str, list[Layer], dict[str, list]]:
    line, _, coded = body.partition(b"\n")
    name, coder, *parts = line.decode().split()
    assert coder == "range"
    base, *thin = name.split("/")
    student = base.split("-")[1] if base.startswith("784-") else ""
    layers = of_the_kit(OF_THE_KIT["student" if student else base].format(student))
    for each in thin:
        layer, rank = each.split("=")
        make_thin(layers, [each["name"] for each in weighted(layers)].index(layer), int(rank))
    named = {str(place): layer for place, layer in enumerate(layers if by_places else weighted(layers))}
    titles = {layer["name"]: str(place) for place, layer in enumerate(layers)} if by_places else {}
    take_out(layers, [named[each[1:]]["name"] if by_places else each[1:] for each in parts if each[0] == "-"])
    for each in parts:
        if each[0] == "+":
            next(layer for layer in layers if layer["name"] == each[1:])["bias"] = True
        elif each[0] != "-":
            place, width = each.split("=")
            named[place]["outputs"] = int(width)
    stream, tensors = Stream(coded, "little"), dict(shapes(layers))
    order = (
        sorted(tensors, key=lambda title: titles[title.split(".")[0]] + "." + title.split(".")[1])
        if by_places
        else tensors
    )
    read = {title: by_values(stream, tensors[title][0], math.prod(tensors[title][1:])) for title in order}
    return name, layers, {title: read[title] for title in tensors}
