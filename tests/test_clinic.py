"""The clinic's tests are red on the mistakes of lesson 12, green on what mends them and on the kit's own code."""

import copy
import inspect
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.distillation import (
    DistillationLoss,
    attention_loss,
    attention_map,
    distillation_loss,
    hint_loss,
    logit_loss,
    similarity_loss,
    soft_loss,
    with_answers,
)
from kd_lab.distillation.features import regressor
from kd_lab.errors import ParameterError
from kd_lab.exercises import clinic
from kd_lab.exercises.clinic import Finding
from kd_lab.networks import make_permanent, predict, small_student
from kd_lab.penalties import l1_penalty
from kd_lab.pretraining import pretrain
from kd_lab.pruning import (
    IMPORTANCES,
    gradient_mask,
    hard_prune,
    magnitude_mask,
    prune,
    prune_channels,
    prune_least_squares,
    random_mask,
    rank,
    weight_gradient_mask,
)
from kd_lab.quantization import quantize_weights, share_weights, ternarize_weights
from kd_lab.training import train

LESSON = Path(__file__).parents[1] / "notebooks" / "12_bug_clinic.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(LESSON, as_version=4).cells if cell.cell_type == "code"}
CASES = range(1, 17)
TRAINING = 1, 3, 5, 13  # these take a second each, and the lesson itself asserts its findings whenever it is tested
TESTS = {
    name: test
    for name, test in vars(clinic).items()
    if inspect.isfunction(test) and test.__module__ == clinic.__name__ and not name.startswith("_")
}
QUICK = {"epochs": 1, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def lesson():
    """The names of the lesson after its first cell."""
    names = {"display": lambda *_findings: None}
    exec(CELLS["start-data"], names)
    return names


def run_case(number, names):
    """Run the cells of one case; return its red findings and its green ones."""
    for kind in ("buggy", "red", "mended"):
        exec(CELLS[f"{kind}-{number:02}"], names)
    found = {name: value for name, value in names.items() if isinstance(value, Finding)}
    return (
        [each for name, each in found.items() if name.startswith(f"{word}_{number:02}")] for word in ("red", "green")
    )


@pytest.mark.parametrize(
    "number", [pytest.param(case, marks=[pytest.mark.slow] * (case in TRAINING)) for case in CASES]
)
def test_every_mistake_of_the_lesson_is_red_and_green_when_mended(number, lesson, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    if number == 7:
        exec(CELLS["mended-06"].rpartition("green_06 =")[0], lesson)  # it compares with the loss of case 6
    red, green = run_case(number, lesson)
    assert red and not any(red), red
    assert green and all(green), green
    assert all(each.seen.endswith((".", "…")) and each.habit.endswith(".") for each in red + green)


def test_the_lesson_uses_every_test_of_the_clinic():
    used = "\n".join(CELLS[f"red-{number:02}"] for number in CASES)
    assert [name for name in TESTS if f" {name}" not in used] == []


# green on the kit's own code


@pytest.fixture(scope="module")
def teacher():
    return load_trained("mlp128")


def test_the_kits_masks_make_zeros():
    gradient = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    ways = {
        "magnitude": magnitude_mask,
        "random": random_mask,
        "gradient": lambda _weight, sparsity: gradient_mask(gradient, sparsity),
        "weight_gradient": lambda weight, sparsity: weight_gradient_mask(weight, gradient, sparsity),
        "float": lambda weight, sparsity: magnitude_mask(weight, sparsity).float(),
        "weight": lambda weight, sparsity: weight * magnitude_mask(weight, sparsity),
        "in place": in_place,
        "by chance": lambda weight, sparsity: torch.rand_like(weight) > sparsity,
        "compensated": lambda weight, sparsity: 1.3 * weight * magnitude_mask(weight, sparsity),
    }
    assert [name for name, way in ways.items() if not clinic.does_it_make_zeros(way)] == []


def in_place(weight, sparsity):
    weight.mul_(magnitude_mask(weight, sparsity))


def kit_masks(layers, sparsity):
    return rank({str(place): layer.abs() for place, layer in enumerate(layers)}).masks(sparsity)


def test_the_kits_ranking_has_one_threshold():
    assert clinic.is_it_one_threshold(kit_masks)
    assert clinic.is_it_one_threshold(
        lambda layers, sparsity: [m.float() for m in kit_masks(layers, sparsity).values()]
    )
    each = lambda layers, sparsity: [magnitude_mask(layer, sparsity) for layer in layers]
    assert not clinic.is_it_one_threshold(each)
    assert "for 3 layers" in clinic.is_it_one_threshold(lambda layers, _sparsity: layers[:1]).seen


@pytest.mark.slow
def test_one_threshold_of_more_weights_than_many_a_quantile_takes():
    assert clinic.is_it_one_threshold(kit_masks, count=2**24 + 1000)


def test_the_kit_prunes(teacher):
    ways = [
        lambda network: prune(network, 0.5),
        lambda network: make_permanent(prune(network, 0.02)),
        lambda network: hard_prune(prune_channels(network, 0.5)),
        torchs_own,
    ]
    assert [clinic.is_anything_pruned(way, teacher).passed for way in ways] == [True] * 4
    assert not clinic.is_anything_pruned(copy.deepcopy, teacher)


def torchs_own(network):
    """Prune in place and return nothing."""
    torch.nn.utils.prune.l1_unstructured(network.fc1, "weight", 0.5)


@pytest.mark.slow
def test_least_squares_prunes(teacher, few):
    assert clinic.is_anything_pruned(lambda network: prune_least_squares(network, 0.5, few.images[:200]), teacher)


def test_a_penalty_does_not_prune(few, validation):
    def by_l1(network):
        penalty = lambda model: 1e-3 * l1_penalty(model)
        return train(network, few, F.cross_entropy, validation=validation[:200], penalty=penalty, **QUICK)

    assert not clinic.is_anything_pruned(by_l1, small_student(10))


def test_zeros_stay_in_what_the_kit_trains(teacher, few, validation):
    settings = QUICK | {"validation": validation[:200]}
    masked = prune(teacher, 0.8)
    kept = train(masked, few, F.cross_entropy, **settings)[0]
    assert clinic.do_zeros_stay(masked, kept) and clinic.do_zeros_stay(masked, make_permanent(kept))
    lost = train(make_permanent(masked), few, F.cross_entropy, **settings)[0]
    assert not clinic.do_zeros_stay(masked, lost)
    more = prune(kept, 0.9)
    assert clinic.do_zeros_stay(masked, more)  # and new ones
    assert clinic.do_zeros_stay(teacher, teacher).seen == "The pruned network has no zeros."


def test_soft_and_hard_pruning_of_the_kit(teacher, few):
    soft = prune_channels(teacher, 0.5)
    assert clinic.is_hard_smaller(soft, hard_prune(soft), few.images[:100])
    assert clinic.is_hard_smaller(make_permanent(soft), hard_prune(soft), few.images[:100])
    assert not clinic.is_hard_smaller(soft, make_permanent(soft), few.images[:100])
    assert "differ by" in clinic.is_hard_smaller(soft, small_student(10), few.images[:100]).seen


def test_the_kits_importances_have_no_sign():
    for importance in IMPORTANCES.values():
        assert clinic.is_importance_unsigned(lambda weight, gradient, of=importance: of(weight, gradient, None))
    assert clinic.is_importance_unsigned(lambda weight, _gradient: weight**2)
    assert not clinic.is_importance_unsigned(lambda weight, gradient: weight * gradient)
    assert not clinic.is_importance_unsigned(lambda weight, _gradient: weight)


def test_the_kits_quantizers_round(teacher):
    ways = {
        8: [quantize_weights(teacher, 8), quantize_weights(teacher, 8, "per_tensor")],
        4: [quantize_weights(teacher, 4), share_weights(teacher, 4), make_permanent(quantize_weights(teacher, 4))],
        2: [ternarize_weights(teacher)],
        1: [quantize_weights(teacher, 1)],
    }
    for bits, networks in ways.items():
        assert all(clinic.are_weights_rounded(teacher, network, bits) for network in networks), bits
        assert not clinic.are_weights_rounded(teacher, teacher, bits)
    rounded = make_permanent(ways[4][0])
    assert clinic.are_weights_rounded(rounded, quantize_weights(rounded, 4), 4)  # on the grid already
    tiny = nn.Linear(30, 5)  # no row has 256 values, rounded or not
    assert "no weight has changed" in clinic.are_weights_rounded(tiny, tiny, 8).seen
    assert clinic.are_weights_rounded(tiny, quantize_weights(tiny, 8), 8)
    zeros = copy.deepcopy(teacher)
    for parameter in zeros.parameters():
        parameter.data = parameter.data.int().float()
    assert "size" in clinic.are_weights_rounded(teacher, zeros, 8).seen


def test_the_kits_losses(teacher):
    for temperature, alpha in ((1, 0.5), (4, 0.1), (20, 0)):
        assert clinic.does_it_use_the_teacher(DistillationLoss(temperature, alpha))
    assert clinic.does_it_use_the_labels(lambda logits, labels: distillation_loss(logits, -logits, labels, 1, 0.9))
    assert not clinic.does_it_use_the_teacher(DistillationLoss(4, 1))  # alpha 1 listens to the labels alone
    assert clinic.does_it_use_the_teacher(lambda student, _labels, target: logit_loss(student, target))
    assert all(test(soft_loss) for test in SOFT_TESTS)
    assert clinic.does_it_use_the_labels(F.cross_entropy) and clinic.does_it_use_the_labels(nn.CrossEntropyLoss())


SOFT_TESTS = clinic.is_it_the_divergence, clinic.does_the_balance_hold, clinic.is_it_finite


def own_soft_loss(reduction, factor=lambda t: t**2):
    def loss(student, teacher, temperature):
        logs, targets = (student / temperature).log_softmax(1), (teacher / temperature).softmax(1)
        return factor(temperature) * F.kl_div(logs, targets, reduction=reduction)

    return loss


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none", "mean"])
def test_a_loss_may_be_reduced_in_any_way(reduction):
    assert all(test(own_soft_loss(reduction)) for test in SOFT_TESTS)
    labels = lambda logits, labels: F.cross_entropy(logits, labels, reduction="none")
    assert clinic.does_it_use_the_labels(labels)


def test_soft_cross_entropy_pulls_as_the_divergence_does():
    def soft_cross_entropy(student, teacher, temperature):
        return temperature**2 * F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))

    assert all(test(soft_cross_entropy) for test in SOFT_TESTS)


def test_a_divergence_the_other_way_round_is_named():
    turned = clinic.is_it_the_divergence(lambda student, teacher, temperature: soft_loss(teacher, student, temperature))
    assert not turned and turned.seen.endswith("the other way round.")
    for loss in (lambda student, teacher, _t: F.mse_loss(student, teacher), lambda student, *_others: 0 * student):
        assert "in another direction" in clinic.is_it_the_divergence(loss).seen


def test_a_temperature_that_is_forgotten_is_no_divergence_of_softened_answers():
    assert not clinic.is_it_the_divergence(lambda student, teacher, _temperature: soft_loss(student, teacher, 1))
    assert clinic.is_it_the_divergence(own_soft_loss("batchmean", lambda t: 1))
    assert not clinic.does_the_balance_hold(own_soft_loss("batchmean", lambda t: 1))
    assert not clinic.does_the_balance_hold(own_soft_loss("batchmean", lambda t: t))


def with_dropout(teacher):
    noisy = copy.deepcopy(teacher)
    noisy.relu1 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    return noisy


def test_a_frozen_teacher(teacher, few):
    noisy, images = with_dropout(teacher).train(), few.images[:100]
    assert clinic.is_the_teacher_frozen(predict, noisy, images)
    assert clinic.is_the_teacher_frozen(lambda model, x: with_answers(model, few[:100])[2], noisy, images)
    assert clinic.is_the_teacher_frozen(torch.no_grad()(lambda model, x: model(x)), noisy.eval(), images)
    assert not clinic.is_the_teacher_frozen(lambda model, x: model(x), noisy, images)  # inside the graph
    assert clinic.is_the_teacher_frozen(lambda model, x: model(x), noisy.requires_grad_(False), images)
    assert clinic.is_the_teacher_frozen(lambda model, x: predict(model, x).softmax(1), noisy, images)
    noisy.train()
    assert not clinic.is_the_teacher_frozen(torch.no_grad()(lambda model, x: model(x)), noisy, images)
    assert not clinic.is_the_teacher_frozen(torch.no_grad()(lambda _model, x: noisy(x)), noisy, images)  # its own


def test_features_that_a_regressor_translates():
    draw = torch.Generator().manual_seed(0)
    narrow, wide = (torch.randn(20, width, generator=draw) for width in (6, 9))
    translate = regressor((6,), (9,))
    assert clinic.do_features_fit(lambda student, teacher: hint_loss(translate(student), teacher), narrow, wide)
    assert clinic.do_features_fit(similarity_loss, narrow, wide)
    maps = [torch.randn(20, channels, 5, 5, generator=draw) for channels in (3, 4)]
    by_maps = lambda student, teacher: attention_loss(attention_map(student), attention_map(teacher))
    assert clinic.do_features_fit(by_maps, *maps)
    assert clinic.do_features_fit(F.mse_loss, wide, wide + 1)
    assert not clinic.do_features_fit(F.mse_loss, wide[:, :1], wide)  # torch spreads the one over all
    assert not clinic.do_features_fit(lambda student, teacher: student.detach().sum() - teacher.sum(), narrow, wide)


@pytest.mark.parametrize("task", ["masked", "contrastive"])
def test_the_kits_pretraining_needs_no_labels(task, few):
    def by_kit(network, data):
        images, _ = data
        return pretrain(network, images, task, validation=images[:100], **QUICK)[0]

    assert clinic.does_it_need_no_labels(by_kit, small_student(10), few[:300])
    assert clinic.does_it_need_no_labels(by_kit, small_student(10), tuple(few[:300]))


def test_what_learns_nothing_has_no_pretext_task(few):
    found = clinic.does_it_need_no_labels(lambda network, _data: network, small_student(10), few[:300])
    assert not found and "have moved by 0 %" in found.seen


def test_the_parts_of_mnist_have_no_image_in_common(mnist):
    assert clinic.is_the_evaluation_unseen(mnist.train[:5000], mnist.test)
    assert clinic.is_the_evaluation_unseen(mnist.train, mnist.validation)
    assert clinic.is_the_evaluation_unseen(mnist.test.images[:100], mnist.validation[:100])
    assert not clinic.is_the_evaluation_unseen(mnist.train[:100], mnist.train[90:190])


def test_a_student_is_smaller(teacher):
    assert clinic.is_the_student_smaller(small_student(30), teacher)
    assert not clinic.is_the_student_smaller(teacher, teacher)


# whatever comes


def broken(*_arguments):
    raise ValueError("no\nsuch <thing>")


def needed(name, teacher, few):
    """Return what a test takes besides a function, or in its place."""
    images = few.images[:20]
    return {
        "is_anything_pruned": (teacher,),
        "is_the_teacher_frozen": (teacher, images),
        "do_features_fit": (images.flatten(1)[:, :5], images.flatten(1)[:, :5]),
        "does_it_need_no_labels": (teacher, few[:100]),
    }.get(name, ())


NO_FUNCTION = {
    "do_zeros_stay",
    "is_hard_smaller",
    "are_weights_rounded",
    "is_the_student_smaller",
    "is_the_evaluation_unseen",
}


@pytest.mark.parametrize("name", sorted(TESTS.keys() - NO_FUNCTION))
def test_a_function_that_raises_or_gives_something_else_is_red(name, teacher, few):
    more = needed(name, teacher, few)
    found = TESTS[name](broken, *more)
    assert not found and found.seen == "It raised ValueError: no such <thing>"
    assert "&lt;thing&gt;" in found._repr_html_() and "✘ red" in found._repr_html_() and "✘ red" in repr(found)
    for given in ("text", 3.5, torch.zeros(2)):
        assert not TESTS[name](lambda *_arguments, given=given: given, *more)
    assert not TESTS[name](lambda: None, *more)
    with pytest.raises(ParameterError, match=rf"^{name}\(\): '\w+' must be a function"):
        TESTS[name]("prune", *more)


def test_a_wrong_kind_of_argument_is_named(teacher, few):
    for test in (clinic.do_zeros_stay, clinic.is_the_student_smaller):
        with pytest.raises(ParameterError, match=rf"^{test.__name__}\(\): '\w+' must be a network"):
            test(teacher, few.images)
    with pytest.raises(ParameterError, match=r"must have the same layers"):
        clinic.do_zeros_stay(teacher, small_student(30))
    with pytest.raises(ParameterError, match=r"'num_bits' must be a whole number in \[1, 16\]"):
        clinic.are_weights_rounded(teacher, teacher, 0)
    with pytest.raises(ParameterError, match=r"^is_the_evaluation_unseen\(\): the data must be"):
        clinic.is_the_evaluation_unseen(few, teacher)
    with pytest.raises(ParameterError, match=r"'evaluation' must be images in the shape"):
        clinic.is_the_evaluation_unseen(few, few.images.flatten(1))
    with pytest.raises(ParameterError, match=r"^do_features_fit\(\): 'teacher_features' must be a tensor"):
        clinic.do_features_fit(F.mse_loss, few.images, "wide")
    with pytest.raises(ParameterError, match=r"^is_the_teacher_frozen\(\): "):
        clinic.is_the_teacher_frozen(predict, teacher, few.images[:, :, :3])
    with pytest.raises(ParameterError, match=r"^does_it_need_no_labels\(\): the data must be"):
        clinic.does_it_need_no_labels(predict, teacher, few.images)


def test_nothing_of_the_learners_is_changed(teacher, few, surroundings):
    noisy, images = with_dropout(teacher).train(), few.images[:50]
    before, state = copy.deepcopy(noisy.state_dict()), torch.random.get_rng_state()

    def spoil(network, *_others):
        torch.rand(3)
        with torch.no_grad():
            network.fc1.weight.zero_()
        network.fc1.bias.data.add_(1)
        return network

    clinic.is_anything_pruned(spoil, noisy)
    clinic.is_the_teacher_frozen(spoil, noisy, images)
    clinic.does_it_need_no_labels(spoil, noisy, few[:50])
    clinic.do_zeros_stay(noisy, noisy)
    clinic.are_weights_rounded(noisy, noisy, 4)
    clinic.is_hard_smaller(noisy, noisy, images)
    assert clinic.is_it_finite(soft_loss) and clinic.does_it_use_the_teacher(DistillationLoss(4, 0.5))
    assert all(torch.equal(before[name], tensor) for name, tensor in noisy.state_dict().items())
    assert all(module.training for module in noisy.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_finding_says_what_it_is():
    green, red = Finding(True, "Seen.", "Do so."), Finding(False, "Seen.", "Do so.")
    assert green and not red
    assert repr(green) == "✔ green: Seen. Habit: Do so." and repr(red).startswith("✘ red: Seen.")
    assert "✔ green" in green._repr_html_() and "✘ red" in red._repr_html_()
    with pytest.raises(AttributeError):
        green.passed = False
