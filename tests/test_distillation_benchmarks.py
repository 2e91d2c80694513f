"""Settings are chosen on validation images, and the parts of the experiment do what they are called."""

import pytest
import torch

from benchmarks import _gains, hinton
from kd_lab.data import MEAN, STD
from kd_lab.errors import ParameterError
from kd_lab.results import Record, load_results


def test_the_temperature_of_a_gain_is_chosen_on_validation_images():
    seed = {
        "labels": {"validation_error": 5.0, "test_error": 5.0},
        "1": {"validation_error": 3.0, "test_error": 4.0},
        "4": {"validation_error": 4.0, "test_error": 1.0},
    }
    gains = {"temperatures": [1, 4], "images": {"500": [seed, seed]}}
    figures = _gains.score_gains(Record({"seeds": [0, 1], "gains": gains}))
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
