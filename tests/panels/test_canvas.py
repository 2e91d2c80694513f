"""What is drawn over what stays looks like a figure that is drawn afresh."""

import io

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kd_lab.panels.canvas import Canvas, digit_picture, digit_strip, text_image, with_title

INSET = np.zeros((10, 20, 3), dtype=np.uint8)


def figure_with_line(values):
    figure = Figure(figsize=(3, 2), dpi=100)
    axes = figure.add_axes((0.2, 0.2, 0.7, 0.7))
    axes.set(xlim=(0, 2), ylim=(0, 1))
    (line,) = axes.plot(values, color="crimson")
    return figure, line


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_a_moved_line_looks_as_if_drawn_afresh():
    figure, line = figure_with_line([0, 1, 0])
    canvas = Canvas(figure, [line])
    canvas.png(INSET, 0, 0)
    line.set_ydata([1, 0.3, 0.7])
    picture = pixels(canvas.png(INSET, 5, 7))
    fresh = FigureCanvasAgg(figure_with_line([1, 0.3, 0.7])[0])
    fresh.draw()
    expected = np.asarray(fresh.buffer_rgba())[..., :3].astype(int)
    assert (picture[7:17, 5:25] == 0).all()
    expected[7:17, 5:25] = 0
    difference = np.abs(picture - expected).max(axis=2)
    assert (difference > 40).mean() < 0.01  # shades at the edges may differ a little, in a palette of 256 colours
    assert (difference == 0).mean() > 0.9 and tuple(picture[0, 0]) == (255, 255, 255)


def test_a_canvas_forgets_what_was_drawn_before():
    figure, line = figure_with_line([0, 1, 0])
    canvas = Canvas(figure, [line])
    first = canvas.png(INSET, 0, 0)
    line.set_ydata([1, 0.3, 0.7])
    assert canvas.png(INSET, 50, 50) != first
    line.set_ydata([0, 1, 0])
    assert canvas.png(INSET, 0, 0) == first


def test_a_title_stands_above_an_unchanged_picture():
    figure, line = figure_with_line([0, 1, 0])
    png = Canvas(figure, [line]).png(INSET, 0, 0)
    titled = pixels(with_title(png, "50 % pruned"))
    assert titled.shape == (230, 300, 3) and np.abs(titled[30:] - pixels(png)).max() < 4
    assert (titled[:30] < 128).any() and (titled[:3] == 255).all()


def test_a_title_too_wide_for_its_picture_goes_on_in_the_next_line():
    figure, line = figure_with_line([0, 1, 0])
    png = Canvas(figure, [line]).png(INSET, 0, 0)
    titled = pixels(with_title(png, "magnitude 94.88 %, least squares 97.28 % of 5,000 validation images"))
    assert titled.shape == (260, 300, 3) and np.abs(titled[60:] - pixels(png)).max() < 4
    for row in range(0, 60, 30):
        assert (titled[row : row + 30] < 128).any() and (titled[row : row + 30, [0, 1, -2, -1]] == 255).all()


def test_a_line_of_text_fits_its_image():
    image = text_image("9 → 4", 64, 18, 9)
    assert image.shape == (18, 64, 3) and (image < 128).any()
    border = np.concatenate([image[0].ravel(), image[-1].ravel(), image[:, 0].ravel(), image[:, -1].ravel()])
    assert (border == 255).all()


def test_an_image_of_any_scale_is_drawn_in_black_on_white(mnist):
    image = mnist.validation.images[0]
    expected = digit_picture(image, 2)
    assert (expected.min(), expected.max()) == (0, 255)
    for scaled in (0.01 * image, 255 * image + 40, image.double()):
        assert abs(digit_picture(scaled, 2).astype(int) - expected).max() <= 1
    assert (digit_picture(torch.full((1, 28, 28), 0.5), 2) == 255).all()  # nothing is to be seen
    words = digit_picture(torch.tensor([3, 0, 11, 7]), 1)[:, ::7, 0]
    assert (words == [[185, 255, 0, 93]]).all()


def test_a_strip_holds_the_first_ten_of_the_chosen_digits(mnist):
    images, labels = mnist.validation[:50]
    strip = digit_strip(images, labels, 9 - labels, torch.arange(20, 40))
    assert strip.shape == (74, 640, 3)
    for place, index in enumerate(range(20, 30)):
        cell = strip[:, 64 * place : 64 * (place + 1)]
        assert (cell[:18] == text_image(f"{labels[index]} → {9 - labels[index]}", 64, 18, 9)).all()
        white_on_black = torch.tensor(255 - cell[18::2, 4:60:2, 0].astype(int))
        pixels = images[index, 0] - images[index, 0].min()
        pixels = 255 * pixels / pixels.max()
        assert (white_on_black - pixels).abs().max() <= 1
    assert (digit_strip(images, labels, labels, torch.tensor([7]))[:, 64:] == 255).all()
    assert (digit_strip(images, labels, labels, torch.tensor([], dtype=int)) < 128).any()  # says "none"
