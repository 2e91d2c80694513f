"""What a campaign recorded is read by its name, and found in the record by a few keys."""

import json

import pytest

from benchmarks import record
from kd_lab import results
from kd_lab.errors import ParameterError
from kd_lab.results import PerSeed, Record, load_results

CAMPAIGN = {
    "python": "3.11.7",
    "seeds": [0, 1, 2],
    "temperatures": [1, 4, 8],
    "teacher": {"test_error": 0.5, "wrong": "8 115"},
    "students": {
        "recipe": {"epochs": {"hard": 3, "taught": 4}},
        "seeds": [
            {"hard": {"test_error": 1.5, "wrong": "3 5 9"}, "taught": {"test_error": 1.4, "wrong": ""}},
            {"hard": {"test_error": 1.7, "wrong": "5"}, "taught": {"test_error": 1.2, "wrong": "7"}},
            {"hard": {"test_error": 1.9, "wrong": "9"}, "taught": {"test_error": 1.3, "wrong": "11"}},
        ],
    },
    "held": {"hand": {"epochs": 5}, "seeds": [{"hand": [{"strength": 0.1, "test_error": 4.0 + n}]} for n in range(3)]},
    "few": {"500": [{"hard": {"test_error": error}} for error in (9.0, 8.0, 7.0)]},
    "lost": {"global": {"0.8": [0.3, 0.2, 0.4]}},
    "net_taught_1": {"recipes": [{"stages": [["start", 90, 1.6], ["end", 22, 1.8]]}]},
    "net_taught_0": {"recipes": [{"stages": [["start", 90, 1.5], ["end", 20, 1.7]]}]},
    "net_taught_2": {"recipes": [{"stages": [["start", 90, 1.4], ["end", 24, 1.9]]}]},
    "reached": {"net_taught_1_64": {"range": "1.18 to 1.37"}},
}


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    (tmp_path / "campaign.json").write_text(json.dumps(CAMPAIGN))
    return load_results("campaign")


def test_what_is_recorded_is_read_with_its_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.RESULTS", tmp_path)
    record("campaign", {"seeds": [0, 1]})
    assert load_results("campaign").seeds == [0, 1] and {"python", "torch"} == load_results("campaign").keys()


def test_an_unknown_campaign_names_the_closest():
    with pytest.raises(ParameterError, match=r"load_results\(\): 'name' .* Did you mean 'importance'\?"):
        load_results("importances")


def test_a_way_has_its_mean_its_ends_and_its_interval():
    found = PerSeed([1.0, 2.0, 6.0])
    assert (found.mean, found.low, found.high) == (3.0, 1.0, 6.0)
    half = 4.302652729911275 * (7 / 3) ** 0.5  # t at 97.5 % and two degrees of freedom; the variance is 7
    assert found.interval == pytest.approx((3 - half, 3 + half))
    assert f"{found:+.1f}" == "+3.0 (-3.6 to +9.6)" and f"{found}" == "3.00 (-3.57 to 9.57)"
    assert repr(found) == "3.00 (-3.57 to 9.57); lowest 1.00, highest 6.00, seeds: 3"


def test_two_ways_are_compared_seed_by_seed(campaign):
    gained = campaign.errors("students", "hard") - campaign.errors("taught")
    assert gained.values == [0.1, 0.5, 0.6] and gained.mean == pytest.approx(0.4)
    half = 4.302652729911275 * (0.07 / 3) ** 0.5
    assert gained.interval == pytest.approx((0.4 - half, 0.4 + half))
    for other in (PerSeed([1.0]), 3):
        with pytest.raises(ParameterError, match="must have a value for each of the same seeds"):
            gained - other


def test_one_value_has_no_interval(campaign):
    once = campaign.errors("teacher")
    assert once.values == [0.5] and (once.mean, once.low, once.high) == (0.5, 0.5, 0.5) and f"{once}" == "0.50 (once)"
    with pytest.raises(ParameterError, match="two or more"):
        _ = once.interval


def test_keys_lead_to_errors_and_to_any_figure_and_some_can_be_left_out(campaign):
    assert campaign.errors("students", "hard").values == [1.5, 1.7, 1.9]
    assert campaign.errors("taught").values == [1.4, 1.2, 1.3]
    assert campaign.errors("few", 500, "hard").values == campaign.errors(500).values == [9.0, 8.0, 7.0]
    assert campaign.errors("held", "hand", 0).values == [4.0, 5.0, 6.0]
    assert campaign.figures("global", 0.8).values == [0.3, 0.2, 0.4]
    assert campaign.figures("net_taught", "recipes", 0, "end", "bytes").values == [20, 22, 24]


def test_settings_are_read_as_they_are(campaign):
    assert campaign.part("recipe") == {"epochs": {"hard": 3, "taught": 4}} and campaign.part("temperatures") == [
        1,
        4,
        8,
    ]
    assert campaign.part("net_taught_1_64", "range") == [1.18, 1.37]
    assert campaign.part("hand", "settings") == {"epochs": 5} and campaign.part("hand", 0, "strength") == 0.1
    with pytest.raises(ParameterError, match=r"Record\.part\(\): students hard differs from seed to seed"):
        campaign.part("students", "hard")


def test_the_run_of_a_seed_has_its_errors_and_its_wrong_images(campaign):
    first = campaign.seed(0)
    assert first.part("students", "hard") == {"test_error": 1.5, "wrong": [3, 5, 9]}
    assert first.errors("taught").values == [1.4] and first.part("epochs", "hard") == 3
    assert campaign.seed(2).figures("end", "validation_error").values == [1.9]
    assert campaign.runs("students", "taught", "wrong") == [[], [7], [11]]
    with pytest.raises(ParameterError, match=r"Record\.seed\(\): 'number' must be .*\[0, 1, 2\]\. Got 3"):
        campaign.seed(3)


def test_a_wrong_key_names_the_closest_and_the_next(campaign):
    with pytest.raises(ParameterError, match=r"Record\.errors\(\): .*lost, .*Got 'taugt'\. Did you mean 'taught'\?"):
        campaign.errors("taugt")
    with pytest.raises(ParameterError, match=r"must be one of hard, recipe, taught\. Got 'soft'"):
        campaign.errors("students", "soft")
    with pytest.raises(ParameterError, match=r"hard test_error fits 2 places, such as students hard "):
        campaign.errors("hard")
    with pytest.raises(ParameterError, match=r"Record\.figures\(\): students hard must lead to a number\."):
        campaign.figures("students", "hard")


def test_the_keys_are_listed(campaign):
    parts = ["python", "temperatures", "teacher", "students", "held", "few", "lost", "reached", "net_taught"]
    assert campaign.names() == parts and repr(campaign) == f"Record of {', '.join(parts)}"
    assert campaign.names("students") == ["recipe", "hard", "taught"] and campaign.names("epochs", "hard") == []


def test_a_campaign_without_seeds_has_one_value_each():
    counts = Record({"figures": {"faults.kills": 200}})
    assert counts.figures("faults.kills").values == [200] and counts.seeds == []


def test_the_recorded_errors_are_those_of_the_images_read_wrongly():
    checked = 0
    for name in ("pruning", "quantization", "hinton", "deep_compression"):
        campaign = load_results(name)
        for path in results._paths(campaign):
            if path[-1:] == ("wrong",):
                counted = [len(wrong) / 100 for wrong in campaign.runs(*path)]  # percent of 10,000
                assert campaign.errors(*path[:-1]).values == pytest.approx(counted, abs=1e-6)
                checked += len(counted)
    assert checked == 5 * (2 + 3 + 4 + 4) + 5 * (1 + 2 * 5) + (1 + 5 * (4 + 6)) + 5 * 4
