"""The shipped files are those that were recorded; which of them count is chosen by validation errors alone."""

from pathlib import Path

import pytest
import torch

from benchmarks import deep_compression
from benchmarks._campaign import SEEDS, error
from kd_lab.data import load_mnist
from kd_lab.errors import ParameterError
from kd_lab.formats.kdz import load_packed
from kd_lab.results import load_results

SCORED = ("lenet300_taught_1_64", "lenet5_taught_1_00")
README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def seed(*ends):
    return {"recipes": [{"stages": [["start", 1000, 1.0], ["end", *end]]} for end in ends]}


@pytest.mark.parametrize(("most", "place"), [(1.5, 1), (2.0, 1), (2.5, 0), (3.5, 0), (1.0, 2), (0.5, 2)])
def test_of_the_recipes_that_are_good_enough_the_smallest_is_chosen(most, place):
    made = [seed((40, 2.0), (50, 1.2), (90, 1.0)), seed((44, 3.0), (54, 1.6), (90, 0.8))]  # means 2.5, 1.4, 0.9
    assert deep_compression.choose(made, most) == place  # where none is, the most accurate


def test_what_was_reached_is_what_the_files_reach_and_what_the_readme_says():
    recorded, data = load_results("deep_compression"), load_mnist()
    assert len(recorded["reached"]) == 2 * len(deep_compression.RECIPES)
    for key, row in recorded["reached"].items():
        network, way, limit = row.pop("network"), row.pop("way"), row.pop("limit")
        assert row.pop("met") == (row["error"] <= limit)
        made = [recorded[f"{network}_{way}_{number}"] for number in SEEDS]
        place = deep_compression.choose(made, limit)
        assert row["files"] == f"{network}_{way}_{place}" and row["validation error"] == pytest.approx(
            sum(seed["recipes"][place]["stages"][-1][2] for seed in made) / 5
        )
        if key in SCORED:  # the benchmark scores all
            assert deep_compression.score(network, way, place, made, data) == row
        assert (
            f"| {row['ratio']:.0f} | {row['bytes']:,.0f} | {row['error']:.2f} % ({row['range']}) | "
            f"{row['points to dense']} |"
        ) in README
        figures = deep_compression.named(network, way, key[-4:], row)
        plain = "plain_" if way == "plain" else ""
        assert figures[f"deep_compression.{network}.{plain}ratio_at_{key[-4:]}"] == row["ratio"]
        assert figures[f"deep_compression.{network}.{plain}at_{key[-4:]}.seeds"] == 5


def test_a_record_of_other_stages_is_refused(monkeypatch):
    stages = deep_compression.RECIPES["lenet300", "taught"]
    assert len(deep_compression._recorded("lenet300_taught_0")) == len(stages)
    monkeypatch.setitem(deep_compression.RECIPES, ("lenet300", "taught"), stages[::-1])
    with pytest.raises(ParameterError, match="has other stages for recipe 0 of lenet300_taught_0"):
        deep_compression._recorded("lenet300_taught_0")
    assert deep_compression._recorded("lenet300_taught_9") == []


def test_the_taught_recipes_keep_to_their_limits_and_to_their_time():
    for row in load_results("deep_compression")["reached"].values():
        if row["way"] == "taught":
            assert row["error"] <= row["limit"]
        assert row["CPU-minutes"] <= (10 if row["network"] == "lenet300" else 30)


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
