"""The benchmark of networks counts every verdict once, under the names that are asked for, and says what broke."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import networks as benchmark
from benchmarks.networks import Verdict

OUTCOMES = ["worked", "worked", "refused", "silent", "raw", "raw", "raw"]


@pytest.fixture
def verdicts() -> list[Verdict]:
    said = {"silent": "off by 0.25", "raw": "TypeError: no", "refused": "train(): no", "worked": ""}
    return [Verdict(str(seed), "train", each, said[each], ("GRU",)) for seed, each in enumerate(OUTCOMES)]


def test_figures_are_counts_of_what_became_of_networks(verdicts):
    counts = {"raw_errors": 3, "silent": 1, "worked": 2, "refused": 1}
    assert benchmark.figures("networks", verdicts) == {f"networks.{name}": count for name, count in counts.items()}


def test_tables_have_a_row_for_each_function_and_for_each_name(verdicts, capsys):
    other = [Verdict("lenet", "prune", "worked", "", ())]
    benchmark.print_functions([*verdicts, *other])
    benchmark.print_named({"lenet": other, "own": verdicts})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "3", "1", "2", "1"] in rows and ["prune", "0", "0", "1", "0"] in rows
    assert ["own", "3", "1", "2", "1"] in rows and ["lenet", "0", "0", "1", "0"] in rows
    assert rows[-1] == ["2:", "train():", "no"]  # the refusal, with its network


def test_what_broke_is_said_once_with_how_often(verdicts, capsys):
    benchmark.print_broken([*verdicts, Verdict("9", "train", "silent", "off by 0.31", ())])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["3", "raw", "train:"], ["2", "silent", "train:"]]
    assert "network 3 (GRU): off by 0.25" in lines[1]


def quick(_case) -> None:
    """Promise nothing."""


def test_a_seed_names_the_same_network_and_one_of_fifty_goes_through_what_is_slow(monkeypatch):
    monkeypatch.setattr(benchmark, "ALL", {"predict": quick})
    monkeypatch.setattr(benchmark, "SLOW", {"scorecard": quick})
    assert [verdict.function for verdict in benchmark.judge_random(50)] == ["predict", "scorecard"]
    first, again = (benchmark.judge_random(7) for _ in range(2))
    assert first == again and [(each.network, each.function, each.outcome) for each in first] == [
        ("7", "predict", "worked")
    ]


def test_the_figures_have_the_names_that_are_asked_for(monkeypatch, capsys):
    for name, value in {
        "ALL": {"predict": quick},
        "SLOW": {},
        "FEW": 2,
        "NAMED": {"lenet": benchmark.NAMED["lenet"]},
        "ProcessPoolExecutor": lambda _processes: ThreadPoolExecutor(1),  # which sees what is set here
    }.items():
        monkeypatch.setattr(benchmark, name, value)
    found = benchmark.run(few=True)
    counts = {"raw_errors": 0, "silent": 0, "worked": 3, "refused": 0}
    named = {f"networks.named.lenet.{name}": int(name == "worked") for name in counts}
    assert found == {"networks.random": 2} | {f"networks.{name}": count for name, count in counts.items()} | named
