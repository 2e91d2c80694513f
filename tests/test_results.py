"""What a campaign recorded is read by its name."""

import pytest

from benchmarks import record
from kd_lab import results
from kd_lab.errors import ParameterError


def test_what_is_recorded_is_read_with_its_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.RESULTS", tmp_path)
    record("campaign", {"seeds": [0, 1]})
    assert results.load_results("campaign")["seeds"] == [0, 1]
    assert {"python", "torch"} < results.load_results("campaign").keys()


def test_an_unknown_campaign_names_the_closest():
    with pytest.raises(ParameterError, match=r"Did you mean 'importance'\?"):
        results.load_results("importances")
