"""The shipped files are those that were recorded; which of them count is chosen by validation errors alone."""

import pytest
import torch

from benchmarks import deep_compression, read
from benchmarks._campaign import SEEDS, error
from kd_lab.compression.records import load_records
from kd_lab.errors import ParameterError
from kd_lab.formats.kdz import load_packed
from kd_lab.results import RESULTS, Record, load_results

SCORED = ("lenet300_taught_1_64", "lenet5_taught_1_00")


def seed(*ends):
    return {"recipes": [{"stages": {"end": {"bytes": size, "validation_error": error}}} for size, error in ends]}


@pytest.mark.parametrize(("most", "place"), [(1.5, 1), (2.0, 1), (2.5, 0), (3.5, 0), (1.0, 2), (0.5, 2)])
def test_of_the_recipes_that_are_good_enough_the_smallest_is_chosen(most, place):
    ends = {"made_0": seed((40, 2.0), (50, 1.2), (90, 1.0)), "made_1": seed((44, 3.0), (54, 1.6), (90, 0.8))}
    recorded = Record({"seeds": [0, 1], **ends})  # mean validation errors 2.5, 1.4, 0.9
    assert deep_compression.choose(recorded, "made", most) == place  # where none is, the most accurate


@pytest.mark.slow
def test_what_was_reached_is_what_the_files_reach(mnist):
    recorded, data = load_results("deep_compression"), mnist
    reached = read("deep_compression")["reached"]
    assert len(reached) == 2 * len(deep_compression.RECIPES)
    for key, row in reached.items():
        network, way, limit = row.pop("network"), row.pop("way"), row.pop("limit")
        assert row.pop("met") == (row["error"] <= limit)
        place = deep_compression.choose(recorded, f"{network}_{way}", limit)
        assert row["files"] == f"{network}_{way}_{place}" and row["validation error"] == pytest.approx(
            deep_compression.at_end(recorded, f"{network}_{way}", place, "validation_error").mean
        )
        if key in SCORED:  # the benchmark scores all
            assert deep_compression.score(network, way, place, recorded, data) == row
        figures = deep_compression.named(network, way, key[-4:], row)
        plain = "plain_" if way == "plain" else ""
        assert figures[f"deep_compression.{network}.{plain}ratio_at_{key[-4:]}"] == row["ratio"]
        assert figures[f"deep_compression.{network}.{plain}at_{key[-4:]}.seeds"] == 5


def test_the_taught_files_are_entered_as_records_and_only_once(mnist, monkeypatch):
    path, reached = RESULTS / "records.json", read("deep_compression")["reached"]
    before = path.read_bytes()
    deep_compression.enter_records(reached, mnist)
    assert path.read_bytes() == before
    entered = []
    monkeypatch.setattr(deep_compression, "enter_record", lambda *where, **told: entered.append((*where[:3], told)))
    deep_compression.enter_records(reached, mnist)
    for (network, limit, paths, told), record in zip(entered, load_records()[:4], strict=True):
        assert (network, limit) == (record.board, record.limit)
        assert [path.relative_to(RESULTS).as_posix() for path in paths] == record.files
        assert told == {name: getattr(record, name) for name in told} and len(told) == 5


def test_a_record_of_other_stages_is_refused(monkeypatch):
    stages = deep_compression.RECIPES["lenet300", "taught"]
    assert len(deep_compression._recorded("lenet300_taught_0")) == len(stages)
    monkeypatch.setitem(deep_compression.RECIPES, ("lenet300", "taught"), stages[::-1])
    with pytest.raises(
        ParameterError, match=r"^results/deep_compression.json has other stages for recipe 0 of lenet300_taught_0"
    ):
        deep_compression._recorded("lenet300_taught_0")
    assert deep_compression._recorded("lenet300_taught_9") == []


def test_the_taught_recipes_keep_to_their_limits_and_to_their_time():
    for row in load_results("deep_compression").part("reached").values():
        if row["way"] == "taught":
            assert row["error"] <= row["limit"]
        assert row["CPU-minutes"] <= (10 if row["network"] == "lenet300" else 30)


def test_each_image_is_moved_by_a_pixel_in_each_direction(mnist):
    small = mnist._replace(train=mnist.train[:20])
    moved = deep_compression.moved(small).train
    places = moved.images.unflatten(0, (9, 20))
    assert torch.equal(places[4], small.train.images) and torch.equal(moved.labels[20:40], small.train.labels)
    assert torch.equal(places[0, :, :, :-1, :-1], small.train.images[:, :, 1:, 1:])
    assert len({image.numpy().tobytes() for image in places[:, 0]}) == 9


def test_every_file_is_the_one_that_was_recorded(mnist):
    recorded, data = load_results("deep_compression"), mnist
    for network, way in deep_compression.RECIPES:
        for seed in SEEDS:
            made = recorded.seed(seed).part(f"{network}_{way}", "recipes")
            for place, recipe in enumerate(made.values()):
                path = deep_compression.path_of(network, way, place, seed)
                *_, end = recipe["stages"].values()
                assert path.stat().st_size == end["bytes"]
                if place == seed == 0:  # the benchmark reads all
                    assert error(load_packed(path), data.validation) == end["validation_error"]
