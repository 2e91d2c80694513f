"""The records of distillation say what the README says, and the experiment's parts do what they are called."""

from pathlib import Path

import pytest
import torch

from benchmarks import _campaign, _gains, hinton
from kd_lab.data import MEAN, STD
from kd_lab.errors import ParameterError
from kd_lab.results import load_results

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
ROWS = {
    "teacher, twice 1,200 units": "teacher",
    "student, twice 800, on labels": "hard",
    "… taught": "distilled",
    "… taught without 3s": "no3",
    "… and its bias mended": "no3_fixed",
}


def test_the_readme_says_what_the_repeated_experiment_came_to():
    recorded = load_results("hinton")
    figures = hinton.score_experiment(recorded)
    for label, way in ROWS.items():
        found = figures[f"hinton.{way}_errors"]
        seeds = [len(seed[way]["wrong"].split()) for seed in recorded["students"]["seeds"]] if way != "teacher" else []
        spread = f" ({min(seeds)} to {max(seeds)})" if seeds else ""
        assert f"| {label} | {found:g}{spread} | {hinton.PUBLISHED[way]} |" in README


def test_the_readme_says_when_a_teacher_helps():
    figures = _gains.score_gains(load_results("distillation")["gains"])
    gains, temperatures = (
        [figures[f"distillation.{name}_{images}"] for images in ("500", "2000", "10000", "all")]
        for name in ("gain_points", "temperature")
    )
    row = " | ".join(
        f"{round(gain, 1) + 0:.1f} (T = {temperature:g})"  # + 0, since -0.0 is no figure
        for gain, temperature in zip(gains, temperatures, strict=True)
    )
    assert f"| {row} |" in README


def test_the_recorded_errors_are_those_of_the_images_read_wrongly():
    recorded = load_results("hinton")
    found = [recorded["teacher"], *(each for seed in recorded["students"]["seeds"] for each in seed.values())]
    assert len(found) == 1 + 5 * 4
    assert [each["test_error"] for each in found] == pytest.approx(_campaign.errors(found), abs=1e-6)


def test_the_temperature_of_a_gain_is_chosen_on_validation_images():
    seed = {
        "labels": {"validation_error": 5.0, "test_error": 5.0},
        "1": {"validation_error": 3.0, "test_error": 4.0},
        "4": {"validation_error": 4.0, "test_error": 1.0},
    }
    figures = _gains.score_gains({"temperatures": [1, 4], "images": {"500": [seed, seed]}})
    assert figures["distillation.temperature_500"] == 1 and figures["distillation.gain_points_500"] == pytest.approx(1)


def test_jitter_shifts_each_image_and_rests_in_evaluation():
    images = torch.full((400, 1, 28, 28), -MEAN / STD)
    images[:, 0, 10, 20] = 1.0
    jitter = hinton.Jitter(2)
    places = [tuple(place) for place in (jitter(images) == 1).nonzero()[:, 2:].tolist()]
    assert set(places) == {(10 + row, 20 + column) for row in range(-2, 3) for column in range(-2, 3)}
    assert len(places) == 400 and torch.equal(jitter(images).amin(dim=(1, 2, 3)), images[:, 0, 0, 0])
    assert jitter.eval()(images) is images


def test_without_the_digit_nothing_of_it_is_left():
    labels = torch.arange(10).repeat(3)
    part = hinton.without_digit((torch.arange(30.0), labels, torch.arange(30.0).unsqueeze(1).expand(30, 10)))
    assert [len(each) for each in part] == [27, 27, 27] and 3 not in part[1]
    assert torch.equal(part[0], part[2][:, 0]) and torch.equal(part[0].long() % 10, part[1])


def test_mending_raises_one_bias_of_a_copy():
    model = hinton.network(0, 30)
    raised = hinton.mended(model, 2.5)
    change = raised[-1].bias - model[-1].bias
    assert change.tolist() == [0, 0, 0, 2.5, 0, 0, 0, 0, 0, 0]
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(raised(x) - model(x), change.expand(4, 10))


def test_the_networks_are_those_of_the_paper_and_depend_on_their_seed():
    teacher, student = hinton.teacher_network(), hinton.network(0, hinton.STUDENT_WIDTH)
    assert [layer.out_features for layer in teacher if isinstance(layer, torch.nn.Linear)] == [1200, 1200, 10]
    assert [layer.out_features for layer in student if isinstance(layer, torch.nn.Linear)] == [800, 800, 10]
    assert not any(isinstance(layer, (torch.nn.Dropout, torch.nn.BatchNorm1d)) for layer in student)
    assert torch.equal(student[1].weight, hinton.network(0, 800)[1].weight)
    assert not torch.equal(student[1].weight, hinton.network(1, 800)[1].weight)


def test_a_record_that_is_not_there_is_named():
    with pytest.raises(ParameterError, match=r"load_results\(\): 'name' must be one of"):
        load_results("hintn")
