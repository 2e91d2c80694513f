"""The shipped files are those that were recorded; which of them count is chosen by validation errors alone."""

from pathlib import Path

import pytest
import torch

from benchmarks import deep_compression
from benchmarks._campaign import SEEDS, error
from kd_lab.compression import load_packed
from kd_lab.data import load_mnist
from kd_lab.results import load_results

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def seed(*ends):
    return {"recipes": [{"stages": [["start", 1000, 1.0], ["end", *end]]} for end in ends]}


@pytest.mark.parametrize(("most", "place"), [(1.5, 1), (2.0, 1), (2.5, 0), (3.5, 0), (1.0, 2), (0.5, 2)])
def test_of_the_recipes_that_are_good_enough_the_smallest_is_chosen(most, place):
    made = [seed((40, 2.0), (50, 1.2), (90, 1.0)), seed((44, 3.0), (54, 1.6), (90, 0.8))]  # means 2.5, 1.4, 0.9
    assert deep_compression.choose(made, most) == place  # where none is, the most accurate


def test_the_readme_says_what_was_reached():
    recorded, data = load_results("deep_compression"), load_mnist()
    made = [recorded[f"lenet300_taught_{number}"] for number in SEEDS]
    for target, most in deep_compression.TARGETS["lenet300"].items():
        found = deep_compression.score("lenet300", "taught", deep_compression.choose(made, most), made, data)
        assert (f"| {found['ratio']:.0f} | {found['bytes']:,.0f} | {found['error']:.2f} % ({found['range']}) | "
                f"{found['points to dense']} |") in README
        assert found["error"] <= most and found["CPU-minutes"] <= 10
        figures = deep_compression.named("lenet300", "taught", target, found)
        assert figures[f"deep_compression.lenet300.ratio_at_{target}"] == found["ratio"]
        assert figures[f"deep_compression.lenet300.at_{target}.seeds"] == 5


def test_each_image_is_moved_by_a_pixel_in_each_direction():
    data = load_mnist()
    small = data._replace(train=data.train[:20])
    moved = deep_compression.moved(small).train
    places = moved.images.unflatten(0, (9, 20))
    assert torch.equal(places[4], small.train.images) and torch.equal(moved.labels[20:40], small.train.labels)
    assert torch.equal(places[0, :, :, :-1, :-1], small.train.images[:, :, 1:, 1:])
    assert len({image.numpy().tobytes() for image in places[:, 0]}) == 9


def test_every_file_is_the_one_that_was_recorded():
    recorded, data = load_results("deep_compression"), load_mnist()
    for network, way in deep_compression.RECIPES:
        for seed in SEEDS:
            for place, made in enumerate(recorded[f"{network}_{way}_{seed}"]["recipes"]):
                path = deep_compression.path_of(network, way, place, seed)
                _, size, validation_error = made["stages"][-1]
                assert path.stat().st_size == size
                if place == seed == 0:  # the benchmark reads all
                    assert error(load_packed(path), data.validation) == validation_error
