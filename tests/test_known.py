"""Known files are chosen by their recorded validation errors, and what is damaged is named and left out."""

from statistics import mean

import pytest

from kd_lab.compression import known
from kd_lab.compression.known import KnownFile, best_within, error_frontier, recorded_files, submitted_files
from kd_lab.compression.leaderboard import submissions
from kd_lab.evaluation import accuracy
from kd_lab.formats.kdz import load_packed
from kd_lab.results import RESULTS, load_results
from kd_lab.storage import write_safely

SHIPPED = RESULTS / "deep_compression" / "lenet5_taught_0_0.kdz"


def file(size, error):
    return KnownFile(f"{size} at {error}", (bytes(size),), error, 1)


SMALL, BETTER, WORSE, AS_GOOD, UNKNOWN = file(100, 3.0), file(200, 1.0), file(150, 4.0), file(250, 1.0), file(90, None)
FILES = [AS_GOOD, WORSE, BETTER, UNKNOWN, SMALL]


@pytest.mark.parametrize(
    "budget, expected", [(0, None), (99, None), (100, SMALL), (199, SMALL), (200, BETTER), (250, BETTER), (1e9, BETTER)]
)
def test_the_best_within_a_budget_has_the_smallest_error_and_then_the_fewest_bytes(budget, expected):
    assert best_within(FILES, budget) == expected


def test_the_frontier_leaves_out_what_another_file_surpasses():
    assert error_frontier(FILES) == [SMALL, BETTER] and error_frontier([UNKNOWN]) == error_frontier([]) == []


def test_recorded_files_have_the_bytes_and_the_errors_of_their_campaigns(mnist):
    found = {each.name: each for each in recorded_files()}
    assert len(found) >= 20 and all(each.seeds == 5 for each in found.values())
    recipes = load_results("deep_compression").runs("lenet5_taught", "recipes", 0)
    errors = [[*each["stages"].values()][-1]["validation_error"] for each in recipes]
    one = found["lenet5_taught_0"]
    assert one.content == SHIPPED.read_bytes() and one.bytes == SHIPPED.stat().st_size
    assert one.error == pytest.approx(mean(errors))
    read = 100 - 100 * accuracy(load_packed(SHIPPED), mnist.validation).value
    assert read == pytest.approx(errors[0], abs=0.05)


def test_those_of_a_later_campaign_count_too(monkeypatch, tmp_path):
    (tmp_path / "frontier").mkdir()
    (tmp_path / "frontier" / "open_1_0.kdz").write_bytes(SHIPPED.read_bytes())
    seeds = ", ".join(f'{{"bytes": 700, "validation_error": {error}}}' for error in (1.0, 2.0, 3.0, 4.0, 6.0))
    parts = (
        f'"files": {{"open_1": {{"recipe": "x", "seeds": [{seeds}]}}, "gone": {{"recipe": "y", "seeds": [{seeds}]}}}}'
    )
    (tmp_path / "frontier.json").write_text(f'{{"seeds": [0, 1, 2, 3, 4], {parts}}}')
    monkeypatch.setattr(known, "RESULTS", tmp_path)
    monkeypatch.setattr("kd_lab.results.RESULTS", tmp_path)
    (found,) = recorded_files()
    assert (found.name, found.error, found.seeds, found.content) == ("open_1", 3.2, 5, SHIPPED.read_bytes())


def test_submissions_wait_to_be_measured_and_damaged_ones_are_named(capsys):
    content = SHIPPED.read_bytes()
    for name, each in {
        "mine.01234567": content,
        "two.01234567.00": content,
        "two.01234567.01": content,
        "bad.01234567": content[:-1],
        "text.01234567": b"kdz",
        "empty.01234567": b"",
    }.items():
        write_safely(submissions() / f"{name}.kdz", each)
    assert [(each.name, each.error, each.seeds) for each in submitted_files()] == [("mine", None, 1), ("two", None, 2)]
    said = capsys.readouterr().out
    assert said.count("Left out: ") == 3 and all(name in said for name in ("bad.", "text.", "empty."))
