"""The losses of distillation are those of the paper, and a teacher is used, frozen and still."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import Split
from kd_lab.distillation import (
    DistillationLoss,
    FeatureLoss,
    distil,
    distillation_loss,
    logit_loss,
    soft_loss,
    soft_targets,
    with_answers,
)
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.training import train

TEMPERATURES = [0.01, 0.5, 1, 2.5, 20, 1000]


def logits(*shape, seed=0):
    return 5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair():
    return logits(7, 10).requires_grad_(), logits(7, 10, seed=1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_targets_are_a_softmax_by_hand(pair, temperature):
    _, teacher = pair
    powers = torch.exp((teacher - teacher.max(dim=1, keepdim=True).values) / temperature)
    torch.testing.assert_close(soft_targets(teacher, temperature), powers / powers.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5, 20, 1000])
def test_the_soft_loss_is_the_divergence_from_teacher_to_student_by_hand(pair, temperature):
    student, teacher = pair
    p, q = (F.softmax(each / temperature, dim=1) for each in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, temperature), by_hand)
    torch_s = temperature**2 * F.kl_div(q.log(), p, reduction="batchmean")
    torch.testing.assert_close(soft_loss(student, teacher, temperature), torch_s)
    other_way = temperature**2 * (q * (q / p).log()).sum(dim=1).mean()
    assert not torch.isclose(soft_loss(student, teacher, temperature), other_way, rtol=1e-3 if temperature < 100 else 0)


def test_the_direction_is_that_which_covers_all_that_the_teacher_holds_possible():
    teacher = torch.tensor([[0.5, 0.5, 1e-6]]).log()
    covers, leaves_out = torch.tensor([[0.4, 0.4, 0.2]]).log(), torch.tensor([[0.98, 0.01, 0.01]]).log()
    assert soft_loss(covers, teacher, 1) < soft_loss(leaves_out, teacher, 1)
    assert soft_loss(teacher, covers, 1) > 0 == soft_loss(teacher, teacher, 1)


@pytest.mark.parametrize("temperature", [0.5, 4, 20])
def test_gradients_agree_with_differences_and_with_the_formula(pair, temperature):
    student, teacher = pair
    assert torch.autograd.gradcheck(lambda z: soft_loss(z, teacher, temperature), student)
    soft_loss(student, teacher, temperature).backward()
    p, q = (F.softmax(each.detach() / temperature, dim=1) for each in (teacher, student))
    torch.testing.assert_close(student.grad, temperature * (q - p) / 7)  # 7 images


def test_a_high_temperature_compares_logits_less_their_means(pair):
    student, teacher = pair
    soft_loss(student, teacher, 1000).backward()
    z, v = (each - each.mean(dim=1, keepdim=True) for each in (student.detach(), teacher))
    torch.testing.assert_close(student.grad, (z - v) / 10 / 7, rtol=0.05, atol=1e-4)  # 10 classes, 7 images
    assert soft_loss(student, teacher, 1000).item() == pytest.approx(F.mse_loss(z, v).item() / 2, rel=0.02)


def test_without_squaring_the_temperature_the_gradient_would_vanish(pair):
    student, teacher = pair
    sizes = []
    for temperature in (20, 200):
        student.grad = None
        soft_loss(student, teacher, temperature).backward()
        sizes.append(student.grad.norm())
    assert sizes[1] == pytest.approx(sizes[0].item(), rel=0.2)  # divided by T², one would be a hundredth of the other


def test_it_survives_logits_whose_softmax_underflows():
    student, teacher = torch.tensor([[200.0, 0, -200]]).requires_grad_(), torch.tensor([[-200.0, 0, 200]])
    loss = soft_loss(student, teacher, 1)
    assert loss.item() == pytest.approx(400)  # softmax(...).log() would give infinity
    loss.backward()
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, 0, -1]]))


def test_alpha_weighs_labels_against_teacher(pair):
    (student, teacher), labels = pair, torch.arange(7)
    hard, soft = F.cross_entropy(student, labels), soft_loss(student, teacher, 4)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 4, 1.0), hard)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 4, 0.0), soft)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, 4, 0.3), 0.3 * hard + 0.7 * soft)
    torch.testing.assert_close(DistillationLoss(4, 0.3)(student, labels, teacher), 0.3 * hard + 0.7 * soft)


def test_the_logit_loss_is_torchs(pair):
    torch.testing.assert_close(logit_loss(*pair), F.mse_loss(*pair))


def noisy_teacher():
    """A teacher that would answer otherwise in training mode, and that was left in it."""
    body = load_trained("mlp128")
    return nn.Sequential(body[0], nn.Dropout(0.9), *body[1:]).train()


def test_answers_are_kept_once_in_evaluation_mode_and_without_gradients(few):
    teacher, calls = noisy_teacher(), []
    teacher.register_forward_hook(lambda _model, inputs, _output: calls.append(len(inputs[0])))
    images, labels, answers = with_answers(teacher, few)
    assert images is few.images and labels is few.labels and not answers.requires_grad
    assert torch.equal(answers, predict(load_trained("mlp128"), few.images))
    assert sum(calls) == len(few.images)  # each image once
    assert teacher.training and all(module.training for module in teacher)  # as it was found


def test_a_teacher_is_asked_once_however_many_epochs_and_stays_as_it_was(few, validation):
    teacher = noisy_teacher()
    before, calls = copy.deepcopy(teacher.state_dict()), []
    teacher.register_forward_hook(lambda _model, inputs, _output: calls.append(len(inputs[0])))
    distil(build_model("mlp128"), teacher, few, validation=validation, epochs=4, progress=False)
    looks = sum(calls) - len(few.images)
    assert looks <= 3 * len(validation.images)  # to compare it with the student, and for the validation loss
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_student_learns_what_the_teacher_says_and_not_the_labels(few, validation):
    wrong = Split(few.images, few.labels.roll(1))
    student, _ = distil(
        build_model("mlp128"), noisy_teacher(), wrong, validation=validation, alpha=0.0, epochs=8, progress=False
    )
    assert accuracy(student, few).value > 0.9  # it saw these labels nowhere
    hard, _ = train(build_model("mlp128"), wrong, F.cross_entropy, validation=wrong, epochs=8, progress=False)
    assert accuracy(hard, few).value < 0.3


def test_alpha_one_is_training_on_labels(few, validation):
    settings = {"epochs": 2, "seed": 3, "progress": False}
    student, history = distil(
        build_model("mlp128"), load_trained("mlp128"), few, validation=validation, alpha=1.0, **settings
    )
    hard, hard_history = train(build_model("mlp128"), few, F.cross_entropy, validation=validation, **settings)
    torch.testing.assert_close(student.state_dict(), hard.state_dict(), rtol=1e-4, atol=1e-5)
    assert history.train_loss == pytest.approx(hard_history.train_loss, rel=1e-4)


def test_a_student_that_diverges_is_reported_as_by_train(few, validation):
    with pytest.raises(Exception, match=r"distil\(\): the loss became NaN"):
        distil(
            build_model("mlp128"),
            load_trained("mlp128"),
            few,
            validation=validation,
            epochs=1,
            progress=False,
            learning_rate=1e-3,
            batch_size=64,
            penalty=lambda model: model[1].weight.sum() * torch.nan,
        )


def test_distil_without_epochs_points_to_a_recipe(few, validation):
    with pytest.raises(ParameterError, match=r"^distil\(\): 'epochs' must be given\. .*student_recipe"):
        distil(small_student(8), load_trained("mlp128"), few, validation=validation)


def test_an_interrupt_says_where_distil_stopped(few, validation, capsys):
    def interrupt(model):
        calls.append(1)
        if len(calls) == 12:  # one look at it, and 8 batches an epoch
            raise KeyboardInterrupt
        return 0 * model[1].weight.sum()

    calls, student, settings = [], build_model("mlp128"), {"validation": validation, "epochs": 5, "progress": False}
    _, history = distil(student, load_trained("mlp128"), few, penalty=interrupt, **settings)
    assert history.stopped == "interrupted" and len(history.epochs) == 2
    assert capsys.readouterr().out == (
        f"distil(): interrupted in epoch 2 of 5: the weights of epoch {history.best_epoch} are returned, which may be "
        "worse than those of a whole training.\n"
    )


def test_a_teacher_that_knows_less_is_named_with_both_accuracies(few, validation):
    with pytest.warns(
        UserWarning,
        match=r"distil\(\): the student reads 9\d\.\d\d % of the validation images, its "
        r"teacher \d+\.\d\d %",
    ) as told:
        distil(load_trained("mlp128"), build_model("cnn"), few, validation=validation, epochs=1, progress=False)
    assert told[0].filename == __file__  # the learner's own line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distil(load_trained("mlp128"), load_trained("mlp128"), few, validation=validation, epochs=1, progress=False)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), True, "4", None, 1001])
def test_temperatures_are_positive(temperature, pair):
    calls = [
        lambda: soft_targets(pair[1], temperature),
        lambda: soft_loss(*pair, temperature),
        lambda: DistillationLoss(temperature, 0.5),
        lambda: distillation_loss(*pair, torch.arange(7), temperature, 0.5),
    ]
    for call in calls:
        with pytest.raises(ParameterError, match=r"\w+\(\): 'temperature' must be a number in \(0, 1000\]\. Got"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), False, "1", None])
def test_alphas_are_fractions(alpha, pair):
    for call in (lambda: DistillationLoss(4, alpha), lambda: distillation_loss(*pair, torch.arange(7), 4, alpha)):
        with pytest.raises(ParameterError, match=r"'alpha' must be a number in \[0, 1\]\. Got"):
            call()


def test_a_bad_setting_is_refused_before_the_teacher_is_asked(few, validation):
    teacher, calls = load_trained("mlp128"), []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ParameterError, match="'temperature'"):
        distil(build_model("mlp128"), teacher, few, validation=validation, temperature=-1, epochs=1)
    assert not calls


def test_classes_that_differ_are_named(few, validation):
    with pytest.raises(
        ParameterError,
        match=r"soft_loss\(\): 'student_logits' and 'teacher_logits' must have one "
        r"shape \(N, classes\)\. Got \(7, 10\) and \(7, 5\)",
    ):
        soft_loss(logits(7, 10), logits(7, 5), 4)
    with pytest.raises(ParameterError, match="must have one shape"):
        soft_loss(logits(10), logits(10), 4)
    with pytest.raises(ParameterError, match="and list"):
        logit_loss(logits(7, 10), [1])
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 12))
    with pytest.raises(ParameterError, match=r"distil\(\): .* Got \(2, 10\) and \(2, 12\)"):
        distil(build_model("mlp128"), teacher, few, validation=validation, epochs=1)


@pytest.mark.parametrize(
    "labels, told",
    [
        (torch.arange(7) + 4, "the labels must be 0 to 9"),
        (torch.zeros(7), "the labels must be whole numbers"),
        (torch.arange(6), "must be (N,) for logits (N, classes). Got (6,)"),
        (torch.zeros(7, 10), "Got (7, 10) and (7, 10)"),
        ([1] * 7, "Got list and (7, 10)"),
    ],
)
def test_labels_that_do_not_fit_are_named(pair, labels, told):
    with pytest.raises(ParameterError) as error:
        distillation_loss(*pair, labels, 4, 0.5)
    assert told in str(error.value) and str(error.value).startswith("distillation_loss()")
    with pytest.raises(ParameterError, match=r"distillation_loss\(\): .* one shape .* Got list"):
        distillation_loss([1], pair[1], torch.arange(7), 4, 0.5)


def test_data_that_cannot_be_learned_from_are_named(few, validation):
    teacher = load_trained("mlp128")
    for wrong in (few.images, (few.images,), (few.images, few.labels[:-1]), None):
        with pytest.raises(ParameterError, match=r"^distil\(\): the data must be"):
            distil(build_model("mlp128"), teacher, wrong, validation=validation, epochs=1)
        with pytest.raises(ParameterError, match=r"^with_answers\(\): the data must be"):
            with_answers(teacher, wrong)


@pytest.mark.filterwarnings("ignore:.*Did you swap them")
@pytest.mark.parametrize("ends", ["student", "teacher"])
def test_a_network_that_ends_in_a_softmax_is_named_where_it_is_distilled(ends, few, validation):
    models = {"student": build_model("mlp128"), "teacher": load_trained("mlp128")}
    settings = {"validation": validation[:50], "epochs": 1, "progress": False}
    with warnings.catch_warnings(action="error", category=UserWarning):
        distil(models["student"], models["teacher"], few[:64], **settings)
    models[ends] = nn.Sequential(models[ends], nn.Softmax(dim=1))
    with pytest.warns(UserWarning, match=rf"^distil\(\): the {ends} answers with probabilities") as caught:
        distil(models["student"], models["teacher"], few[:64], **settings)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_dtype_are_compared_alike(pair, dtype):
    labels = torch.arange(7)
    assert distillation_loss(*pair, labels.to(dtype), 4, 0.5) == distillation_loss(*pair, labels, 4, 0.5)


def test_numbers_of_numpy_become_ordinary_ones():
    assert {type(value) for value in vars(DistillationLoss(np.int64(4), np.float32(0.5))).values()} == {int, float}
    assert {
        type(value) for value in vars(FeatureLoss("hint", np.float32(1), np.int8(4), np.float64(0.5))).values()
    } == {str, int, float}
