"""Draw a digit, and networks answer side by side while you draw: what each is sure of, its bytes and its time."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anywidget
import torch
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from torch import Tensor, nn

from kd_lab.cost import latency
from kd_lab.data import MEAN, STD, Split
from kd_lab.deployment.page import ASSETS
from kd_lab.deployment.parity import real_images
from kd_lab.deployment.served import ServedModel, prepared
from kd_lab.errors import check_kind, check_that
from kd_lab.networks.predictions import MNIST_IMAGE
from kd_lab.panels.canvas import COLOR, GREY, SIDE, Canvas, digit_picture, new_figure
from kd_lab.panels.controls import Value
from kd_lab.panels.measurement import table
from kd_lab.panels.panel import Panel, Shown, side_by_side
from kd_lab.panels.recorded import checked_target, recorded_page
from kd_lab.storage import write_safely

PICTURE_WIDTH, DIGIT, ROW, BARS, CAPTION = 400, 3 * SIDE, 70, 34, 18  # in pixels; a row for each network
MAX_NAME = 30  # letters above a network's bars, as many as fit
COLUMNS = ["network", "answer", "bytes", "ms"]


class Pad(anywidget.AnyWidget):
    """Draw a digit with a mouse, a finger or the arrow keys; `value` is what is drawn, row by row, or nothing."""

    _esm = "\n".join(path.read_text("utf-8") for path in (ASSETS / "pad.js", Path(__file__).with_name("pad_view.js")))
    kind = tuple
    value = Value(()).tag(sync=True)

    def check(self, value: Any) -> None:
        """Raise a ParameterError for what can't be drawn."""
        fits = isinstance(value, (tuple, list)) and len(value) in (0, SIDE * SIDE)
        pixels = fits and all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in value)
        check_that("digit", value, pixels, f"{SIDE * SIDE} numbers from 0 to 1, row by row, or an empty tuple")


class DrawingPanel(Panel):
    """Draw a digit on a pad, and let networks answer side by side while you draw.

    `models` are networks by name, or, as `serve` takes them, files (.kdz, .safetensors, .onnx, .xml, .tflite) or names
    of networks that ship. Each must take images (N, 1, 28, 28) and give logits (N, classes). What is drawn is centred
    and scaled as MNIST's digits were; until then a validation digit is answered. The bytes are those of the file; the
    milliseconds are the median of one image's passes, measured once, after the first answers. Raises a ParameterError
    for a network that can't read such an image. In Colab nothing else is needed: anywidget turns on custom widgets
    there.
    """

    def __init__(self, models: Mapping[str, nn.Module | Path | str]):
        check_kind("models", models, Mapping, "a dict from names to networks or their files")
        check_that("models", models, len(models), "one network or more")
        self._example = real_images(None, 1)
        self._models = [prepared(str(name), "1", model, self._example) for name, model in models.items()]
        for model in self._models:
            shape = model.given["shape"]
            check_that("models", shape, len(shape) == 2, "networks with logits (N, classes)")
        self._milliseconds: list[str] = []  # as far as they are measured
        self._drawing = AnswersPicture(self._models)
        super().__init__({"digit": Pad()}, (PICTURE_WIDTH, self._drawing.height), 24 + 22 * len(self._models))
        self._box.children[1].layout.display = "none"  # a drawing is not pinned
        self._box.add_class("kd-lab-drawing")

    def save_html(self, path: Path | str, settings: Any) -> None:
        """Write a page in which a slider in place of the pad goes through recorded digits, and the networks answer.

        `settings` are digits as load_mnist() gives them, such as `data.validation[:12]`, whose labels stand in the
        titles. All else is as in the pages of the other panels.
        """
        check_kind("settings", settings, Split, "digits with their labels, such as data.validation[:12]")
        shape = tuple(settings.images.shape)
        check_that("settings", settings.images, shape[0] and shape[1:] == MNIST_IMAGE, "digits (N, 1, 28, 28)")
        path = checked_target(path)
        drawn = [tuple(digit.flatten().tolist()) for digit in (settings.images * STD + MEAN).clamp(0, 1)]
        label_of = dict(zip(drawn, settings.labels.tolist(), strict=True))
        records = [
            record._replace(title=record.title.replace("Your digit", f"This {label_of[record.values[0]]}"))
            for record in self._record([{"digit": digit} for digit in drawn])
        ]
        write_safely(path, recorded_page(type(self).__name__, self.controls, records))

    def measure(self, digit: tuple[float, ...]) -> Iterator[Shown]:
        """Yield the answers to a drawing once all networks have given them, and again with what is then measured."""
        pixels = torch.tensor(digit, dtype=torch.float32).view(-1, *MNIST_IMAGE)
        image = (pixels - MEAN) / STD if digit else self._example
        shares = [
            torch.from_numpy(model.batches.run(image.numpy()))[0].double().softmax(0)
            for model in self.steps(self._models)
        ]
        answers = " or ".join(map(str, sorted({int(each.argmax()) for each in shares})))
        title = f"{'Your digit' if digit else 'This example'} is read as {answers}"
        picture = self._drawing.png(image, shares)
        yield Shown(title, picture, side_by_side(self._table(shares)))
        for model in self.steps(self._models[len(self._milliseconds) :]):
            self._milliseconds.append(f"{1000 * latency(model.batches.network, 1, self._example):.2f}")
            yield Shown(title, picture, side_by_side(self._table(shares)))

    def _table(self, shares: list[Tensor]) -> str:
        times = self._milliseconds + ["…"] * (len(self._models) - len(self._milliseconds))
        rows = [
            [model.name, f"{each.argmax()}, {100 * each.max():.0f} %", f"{model.bytes:,}", milliseconds]
            for model, each, milliseconds in zip(self._models, shares, times, strict=True)
        ]
        return table(rows, COLUMNS)


class AnswersPicture:
    """The digit as the networks read it, and how sure each is of every answer."""

    def __init__(self, models: list[ServedModel]):
        self.height = max(ROW * len(models), DIGIT + 2 * CAPTION)
        figure = new_figure(self.height, PICTURE_WIDTH)
        figure.text(DIGIT / 2 / PICTURE_WIDTH, 1 - 9 / self.height, "they read", size=8, ha="center", va="center")
        self._bars = [self._add_bars(figure, *each) for each in enumerate(models)]
        self._canvas = Canvas(figure, [bar for bars in self._bars for bar in bars])

    def png(self, image: Tensor, shares: list[Tensor]) -> bytes:
        """Return the picture of an image (1, 1, 28, 28) and the probabilities (classes,) of each network."""
        for bars, each in zip(self._bars, shares, strict=True):
            for answer, (bar, share) in enumerate(zip(bars, each.tolist(), strict=True)):
                bar.set(height=share, color=COLOR if answer == each.argmax() else GREY)
        return self._canvas.png(digit_picture(image[0], DIGIT // SIDE), 0, CAPTION)

    def _add_bars(self, figure: Figure, place: int, model: ServedModel) -> BarContainer:
        left, bottom = (DIGIT + 44) / PICTURE_WIDTH, 1 - (ROW * place + CAPTION + BARS) / self.height
        axes = figure.add_axes((left, bottom, 1 - left - 4 / PICTURE_WIDTH, BARS / self.height))
        axes.set_title(model.name[:MAX_NAME], fontsize=9, loc="left", pad=3, parse_math=False)
        axes.set(ylim=(0, 1), yticks=(0, 1), yticklabels=("0 %", "100 %"))
        axes.tick_params(labelsize=8, length=2, pad=2)
        _, count = model.given["shape"]
        axes.set_xticks(range(0, count, math.ceil(count / 10)))
        return axes.bar(range(count), [1] * count, color=[COLOR, *[GREY] * (count - 1)])
