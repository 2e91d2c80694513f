"""What the benchmark says of recurrent networks and transformers is computed from each seed's own pair."""

import pytest
import torch
from torch import nn

from benchmarks import _families
from kd_lab.networks import build_model
from kd_lab.results import Record


def seed_of(dense, distilled, compressed):
    whole = {"nonzeros": 1000, "parameters": 1000, "macs": 3000}
    left = {"nonzeros": 200, "parameters": 250, "macs": 1000, "bytes": 300}
    return {
        "dense": {"test_error": dense, **whole},
        "distilled": {"test_error": distilled},
        "compressed": {"test_error": compressed, **left},
        "speedups": {"1": 1.5, "256": 3.0},
    }


def test_differences_are_paired_and_a_gain_is_positive(capsys):
    seeds = [seed_of(1.0, 0.8, 1.1), seed_of(2.0, 1.9, 2.2)]
    found = _families.score_families(Record({"seeds": [0, 1], "rnn": seeds, "vit": seeds}))
    assert found["rnn"]["dense"] == 98.5 and found["vit"]["speedup"] == 3.0
    assert found["rnn"]["distilled_gain"] == pytest.approx(0.15)
    assert found["rnn"]["compressed_delta"] == pytest.approx(-0.15)
    low = found["rnn"]["compressed_delta_low"]
    assert low == pytest.approx(-0.15 - 12.706 * 0.05, abs=1e-3)  # t of one degree of freedom times s / √2
    assert "5.00, 4.00, 3.00" in capsys.readouterr().out


def test_a_narrower_network_is_faster_and_costs_less():
    torch.set_num_threads(1)
    wide, narrow = nn.Sequential(nn.Flatten(), nn.Linear(784, 4000)), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert _families.speedups(wide, narrow)["256"] > 2
    assert _families.costs(build_model("lstm")) == {"parameters": 82_186, "nonzeros": 82_186, "macs": 2_237_696}


def test_every_family_has_stages_of_its_own_network():
    assert _families.STAGES.keys() == set(_families.FAMILIES.values())
