"""What a teacher's layers say is that of the papers' formulas; only the student learns, and is given back plain."""

import copy
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.checkpoints import load_trained
from kd_lab.data import Split
from kd_lab.distillation import (
    FeatureLoss,
    Hinted,
    attention_loss,
    attention_map,
    distil,
    distil_features,
    distillation_loss,
    features,
    hint_loss,
    layer_outputs,
    regressor,
    similarity_loss,
    similarity_map,
    train_on_hints,
)
from kd_lab.errors import ParameterError
from kd_lab.networks.predictions import predict
from kd_lab.networks.zoo import build_model, small_student
from kd_lab.penalties import match_parameters
from kd_lab.pruning import prune

ONCE = {"epochs": 1, "progress": False}


def outputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def some(mnist):
    return mnist.train[:300]


@pytest.fixture
def choose(mnist):
    return mnist.validation[:250]


def thin_cnn():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    return nn.Sequential(OrderedDict(zip(("conv1", "pool1", "relu1", "flatten", "fc1"), layers, strict=True)))


def test_an_attention_map_by_hand():
    output = outputs(2, 3, 4, 5)
    for image, found in zip(output, attention_map(output), strict=True):
        sums = [sum(image[c, h, w].item() ** 2 for c in range(3)) for h in range(4) for w in range(5)]
        length = sum(each**2 for each in sums) ** 0.5
        assert found.tolist() == pytest.approx([each / length for each in sums])


def test_attention_sees_where_and_neither_how_much_nor_in_which_channel():
    output, other = outputs(2, 3, 4, 5), outputs(2, 7, 4, 5, seed=1)
    torch.testing.assert_close(attention_map(-9 * output.flip(1)), attention_map(output))
    left, right = torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2)
    left[..., 0], right[..., 1] = 1, 1
    assert attention_loss(attention_map(left), attention_map(right)).item() == 2  # the most there is
    maps = attention_map(output), attention_map(other)
    by_hand = sum((a - b).norm().item() ** 2 for a, b in zip(*maps, strict=True)) / 2
    assert attention_loss(*maps).item() == pytest.approx(by_hand)


def test_a_similarity_map_by_hand():
    output = outputs(5, 2, 3)
    rows = [
        [sum(a * b for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) for y in output]
        for x in output
    ]
    by_hand = [[each / sum(other**2 for other in row) ** 0.5 for each in row] for row in rows]
    assert similarity_map(output).tolist() == [pytest.approx(row, abs=1e-6) for row in by_hand]


def test_similarity_does_not_see_a_rotation_of_the_units_but_a_hint_does():
    output = outputs(6, 8)
    turned = output @ torch.linalg.qr(outputs(8, 8, seed=1)).Q
    assert similarity_loss(output, turned).item() < 1e-10 < 0.1 < hint_loss(output, turned).item()
    wider = similarity_loss(output, outputs(6, 3, 4, seed=2))
    gap = similarity_map(output) - similarity_map(outputs(6, 3, 4, seed=2))
    assert wider.item() == pytest.approx((gap**2).sum().item() / 36)
    assert similarity_loss(output[:1], output[:1] * 3).item() == 0  # an image alone is like itself


def test_outputs_of_zeros_have_finite_gradients():
    for loss in (lambda x: attention_loss(attention_map(x), attention_map(x) + 1), lambda x: similarity_map(x).sum()):
        output = torch.zeros(2, 3, 4, 5, requires_grad=True)
        loss(output).backward()
        assert torch.isfinite(output.grad).all()


def test_a_regressor_is_as_small_as_the_shapes_allow():
    assert isinstance(regressor((4, 7, 7), (4, 7, 7)), nn.Identity)
    convolution = regressor((4, 7, 7), (16, 7, 7), seed=1)
    assert convolution(outputs(2, 4, 7, 7)).shape == (2, 16, 7, 7) and convolution.kernel_size == (1, 1)
    state = torch.random.get_rng_state()
    for shape, hint in (((4, 7, 7), (16, 5, 5)), ((4, 7, 7), (100,)), ((30,), (4, 7, 7)), ((30,), (100,))):
        assert regressor(shape, hint)(outputs(2, *shape)).shape == (2, torch.Size(hint).numel())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(convolution.weight, regressor((4, 7, 7), (16, 7, 7), seed=1).weight)
    assert not torch.equal(convolution.weight, regressor((4, 7, 7), (16, 7, 7), seed=2).weight)


EXPECTED = [*regressor((4, 7, 7), (16, 7, 7)).parameters(), *regressor((30,), (100,)).parameters()]
HINTS = dict(student_layer="fc1", teacher_layer="fc1", **ONCE)


def test_hints_teach_the_same_whatever_surrounds_the_call(some, surroundings):
    found = [*regressor((4, 7, 7), (16, 7, 7)).parameters(), *regressor((30,), (100,)).parameters()]
    for parameter, expected in zip(found, EXPECTED, strict=True):
        assert torch.equal(parameter, expected) and parameter.dtype == torch.float32 and not parameter.is_inference()
    student, teacher = small_student(8), load_trained("mlp128")
    for teach in (train_on_hints, distil_features):
        taught, _ = teach(student, teacher, some, validation=some, **HINTS)
        assert not torch.equal(taught.fc1.weight, student.fc1.weight) and taught.fc1.weight.dtype == torch.float32


@pytest.mark.parametrize("teach", [train_on_hints, distil_features])
def test_hints_teach_networks_in_double_precision(teach, some):
    precise = some._replace(images=some.images.double())
    taught, history = teach(
        small_student(8).double(), load_trained("mlp128").double(), precise, validation=precise, **HINTS
    )
    _, expected = teach(small_student(8), load_trained("mlp128"), some, validation=some, **HINTS)
    assert taught.fc1.weight.dtype == torch.float64
    assert history.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)


def test_layer_outputs_are_those_of_the_network_cut_off_there(some):
    teacher = load_trained("lenet5").train()
    for place, layer in ((0, "conv1"), (3, "conv2"), (5, "relu2"), (9, "fc2")):
        with torch.no_grad():
            by_hand = teacher[: place + 1](some.images)
        torch.testing.assert_close(layer_outputs(teacher, layer, some.images), by_hand)
    assert not layer_outputs(teacher, "conv1", some.images).requires_grad and teacher.training
    resnet = load_trained("resnet")
    found = layer_outputs(resnet, "block1.body.relu1", some.images[:9])  # a layer inside another
    torch.testing.assert_close(found, resnet[4].body[:3](resnet[:4](some.images[:9])).detach())
    assert not any(module._forward_hooks for module in resnet.modules())


def test_what_the_next_layer_does_in_place_is_not_heard(some):
    convolution = nn.Conv2d(1, 4, 3)
    model = nn.Sequential(convolution, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
    with torch.no_grad():
        expected = convolution(some.images)
    torch.testing.assert_close(layer_outputs(model, "0", some.images), expected)
    heard = Hinted(model, "0", nn.Identity())(some.images)[:, 10:]
    torch.testing.assert_close(heard.detach(), expected.flatten(1))
    heard.sum().backward()  # which a tensor changed in place might refuse


def test_a_hinted_student_answers_logits_and_layer_and_keeps_them_when_copied(some):
    student = thin_cnn()
    hinted = copy.deepcopy(Hinted(student, "relu1", regressor((4, 14, 14), (6, 14, 14))))
    answers = hinted(some.images[:3])
    torch.testing.assert_close(answers[:, :10], student(some.images[:3]))
    torch.testing.assert_close(answers[:, 10:], hinted.translate(student[:3](some.images[:3])).flatten(1))
    student[0].weight.data.zero_()  # the copy listens to its own layer
    assert torch.equal(hinted(some.images[:3]), answers)


@pytest.mark.parametrize("kind", ["hint", "attention", "similarity"])
def test_the_loss_is_the_sum_of_its_parts_and_its_gradients_reach_student_and_regressor_alone(kind, some):
    teacher, student = load_trained("cnn"), thin_cnn()
    hint, logits = layer_outputs(teacher, "relu1", some.images[:20]), predict(teacher, some.images[:20])
    translate = {"hint": regressor((4, 14, 14), (16, 14, 14)), "attention": attention_map}.get(kind, nn.Identity())
    kept = attention_map(hint) if kind == "attention" else hint.flatten(1)
    loss = FeatureLoss(kind, 0.7, 3.0, 0.4)(
        Hinted(student, "relu1", translate)(some.images[:20]), some.labels[:20], logits, kept
    )
    output = student[:3](some.images[:20])
    part = {
        "hint": lambda: F.mse_loss(translate(output), hint),
        "similarity": lambda: similarity_loss(output, hint),
        "attention": lambda: attention_loss(attention_map(output), kept),
    }[kind]()
    answers = distillation_loss(student(some.images[:20]), logits, some.labels[:20], 3.0, 0.4)
    torch.testing.assert_close(loss, answers + 0.7 * part)
    loss.backward()
    learning = [*student.parameters(), *(translate.parameters() if kind == "hint" else ())]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["hint", "attention", "similarity"])
def test_a_plain_new_student_comes_back_and_its_layer_came_nearer(kind, some, choose):
    student, teacher = thin_cnn(), load_trained("cnn")
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    calls = []
    teacher.register_forward_hook(lambda _model, inputs, _output: calls.append(len(inputs[0])))
    learned, history = distil_features(
        student,
        teacher,
        some,
        validation=choose,
        student_layer="relu1",
        teacher_layer="relu1",
        kind=kind,
        weight=100,
        epochs=3,
        batch_size=50,
        progress=False,
    )
    assert type(learned) is nn.Sequential and learned is not student and not learned.training
    assert list(learned.state_dict()) == list(student.state_dict())
    torch.testing.assert_close(before, (student.state_dict(), teacher.state_dict()), rtol=0, atol=0)
    assert len(history.epochs) == 3 and sum(calls) < len(some.images) + 3 * len(choose.images)  # epochs don't ask it
    if kind != "hint":  # whose regressor is gone
        compare = similarity_loss if kind == "similarity" else lambda a, b: attention_loss(*map(attention_map, (a, b)))
        hint, *found = (layer_outputs(model, "relu1", choose.images) for model in (teacher, learned, student))
        assert compare(found[0], hint) < compare(found[1], hint)


def test_without_weight_it_is_plain_distillation(some, choose):
    teacher, settings = load_trained("cnn"), {"validation": choose, "epochs": 2, "seed": 3, "progress": False}
    plain, _ = distil(thin_cnn(), teacher, some, **settings)
    hinted, history = distil_features(
        thin_cnn(), teacher, some, student_layer="relu1", teacher_layer="relu1", weight=0, **settings
    )
    torch.testing.assert_close(hinted.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    by_hand = distillation_loss(predict(hinted, choose.images), predict(teacher, choose.images), choose.labels, 4, 0.1)
    assert min(history.validation_loss) == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["hint", "attention", "similarity"])
def test_the_first_stage_trains_up_to_the_layer_and_without_labels(kind, some, choose):
    student, teacher = thin_cnn(), load_trained("cnn")
    settings = {
        "student_layer": "relu1",
        "teacher_layer": "relu1",
        "kind": kind,
        "epochs": 2,
        "batch_size": 50,
        "weight_decay": 0.1,
        "progress": False,
    }
    lower, history = train_on_hints(student, teacher, some, validation=choose, **settings)
    assert type(lower) is nn.Sequential and list(lower.state_dict()) == list(student.state_dict())
    assert not torch.equal(lower[0].weight, student[0].weight)
    torch.testing.assert_close(lower[4].state_dict(), student[4].state_dict(), rtol=0, atol=0)
    assert history.validation_loss[1] < history.validation_loss[0]
    again, _ = train_on_hints(student, teacher, Split(some.images, some.labels.flip(0)), validation=choose, **settings)
    assert torch.equal(again[0].weight, lower[0].weight)


@pytest.mark.parametrize("train_features", [distil_features, train_on_hints])
def test_the_seed_is_that_of_the_regressor_and_of_the_batches(train_features, some, choose, monkeypatch):
    seeds, build, learn = [], features.regressor, features.train
    monkeypatch.setattr(features, "regressor", lambda *shapes: seeds.append(shapes[-1]) or build(*shapes))
    monkeypatch.setattr(features, "train", lambda *parts, seed, **rest: seeds.append(seed) or learn(*parts, **rest))
    train_features(
        thin_cnn(),
        load_trained("cnn"),
        some,
        validation=choose,
        student_layer="relu1",
        teacher_layer="relu1",
        seed=7,
        **ONCE,
    )
    assert seeds == [7, 7]


def test_batch_statistics_behind_the_layer_stay_too(some, choose):
    student = build_model("resnet")
    lower, _ = train_on_hints(
        student,
        load_trained("resnet"),
        some,
        validation=choose,
        student_layer="block1.body.norm1",
        teacher_layer="block1.body.norm1",
        **ONCE,
    )
    moved = {name for name, tensor in lower.state_dict().items() if not torch.equal(tensor, student.state_dict()[name])}
    before = ("conv1.weight", "norm1.", "block1.body.conv1.", "block1.body.norm1.")
    assert moved == {name for name in student.state_dict() if name.startswith(before)}


@pytest.mark.parametrize("train_features", [distil_features, train_on_hints])
def test_the_callers_networks_and_random_numbers_stay_as_they_were(train_features, some, choose):
    student, teacher = (nn.Sequential(*load_trained("resnet"), nn.Dropout(0.5)).train() for _ in range(2))
    before, state = copy.deepcopy((student.state_dict(), teacher.state_dict())), torch.get_rng_state()
    train_features(student, teacher, some, validation=choose, student_layer="4", teacher_layer="4", **ONCE)
    torch.testing.assert_close((student.state_dict(), teacher.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for model in (student, teacher) for module in model.modules())


def test_linear_layers_of_any_width_and_a_convolution_may_be_paired(some, choose):
    for student_layer, teacher_layer in (("relu1", "relu1"), ("relu1", "fc1"), ("fc1", "relu3")):
        for kind in ("hint", "similarity"):
            distil_features(
                build_model("mlp128"),
                load_trained("cnn"),
                some,
                validation=choose,
                kind=kind,
                student_layer=student_layer,
                teacher_layer=teacher_layer,
                **ONCE,
            )


def test_a_masked_and_a_normalised_student_learn_as_well(some, choose):
    masked = prune(build_model("lenet300"), 0.9)
    learned, _ = distil_features(
        masked, load_trained("lenet300"), some, validation=choose, student_layer="relu1", teacher_layer="relu1", **ONCE
    )
    assert (learned[1].weight == 0).sum() == (masked[1].weight == 0).sum() > 0
    lower, _ = train_on_hints(
        build_model("resnet"),
        load_trained("cnn"),
        some,
        validation=choose,
        student_layer="relu1",
        teacher_layer="conv1",
        kind="attention",
        **ONCE,
    )
    assert torch.equal(lower[-1].weight, build_model("resnet")[-1].weight)


@pytest.mark.parametrize("train_features", [distil_features, train_on_hints])
def test_a_penalty_judges_the_student(train_features, some, choose):
    teacher, found = load_trained("mlp128"), []
    for strength in (0, 10):
        learned, _ = train_features(
            build_model("mlp128"),
            teacher,
            some,
            validation=choose,
            student_layer="fc1",
            teacher_layer="relu1",
            penalty=match_parameters(teacher, strength),
            epochs=2,
            batch_size=50,
            progress=False,
        )
        found.append(match_parameters(teacher, 1)(learned).item())
    assert found[1] < 0.95 * found[0]


@pytest.mark.parametrize("train_features", [distil_features, train_on_hints])
def test_a_layer_that_is_not_there_is_named_with_the_closest(train_features, some, choose):
    name = train_features.__name__
    for student_layer, teacher_layer, told in (
        ("relu2", "relu1", r"'student_layer' must be one of conv1, pool1, .* Did you mean 'relu1'"),
        ("", "relu1", r"'student_layer' must be one of conv1, pool1.* Got ''"),
        ("relu1", 2, r"'teacher_layer' must be one of conv1, pool1.* Got 2\."),
    ):
        with pytest.raises(ParameterError, match=rf"^{name}\(\): {told}"):
            train_features(
                thin_cnn(),
                load_trained("cnn"),
                some,
                validation=choose,
                student_layer=student_layer,
                teacher_layer=teacher_layer,
                epochs=1,
            )


def test_what_cannot_be_listened_to_is_named():
    with pytest.raises(ParameterError, match=r"^Hinted\(\): 'layer' must be one of conv1, pool1, .* Got '5'"):
        Hinted(thin_cnn(), "5", nn.Identity())
    with pytest.raises(ParameterError, match=r"^Hinted\(\): 'model' must be a network"):
        Hinted("cnn", "0", nn.Identity())


def test_maps_of_other_sizes_are_refused_with_both(some, choose):
    with pytest.raises(ParameterError, match=r"attention maps need .* gives \(128,\), the teacher's 'relu1' \(128,\)"):
        distil_features(
            build_model("mlp128"),
            load_trained("mlp128"),
            some,
            validation=choose,
            student_layer="relu1",
            teacher_layer="relu1",
            kind="attention",
            epochs=1,
        )
    for layer, shape in (("conv2", r"\(32, 14, 14\)"), ("fc1", r"\(128,\)")):
        with pytest.raises(
            ParameterError,
            match=r"^distil_features\(\): attention maps need .* The student's layer 'conv1' "
            rf"gives \(4, 28, 28\), the teacher's '{layer}' {shape}",
        ):
            distil_features(
                thin_cnn(),
                load_trained("cnn"),
                some,
                validation=choose,
                student_layer="conv1",
                teacher_layer=layer,
                kind="attention",
                epochs=1,
            )
    for call, told in (
        (lambda: hint_loss(outputs(3, 4), outputs(3, 5)), r"hint_loss\(\): .* \(3, 4\) and \(3, 5\)"),
        (lambda: attention_map(outputs(3, 4)), r"attention_map\(\): .* height, width\)\. Got \(3, 4\)"),
        (lambda: attention_loss(outputs(3, 4), [1]), r"attention_loss\(\): .* Got \(3, 4\) and list"),
        (lambda: similarity_map(outputs(3)), r"similarity_map\(\): .* Got \(3,\)"),
        (lambda: similarity_loss(outputs(3, 4), outputs(2, 4)), r"same N images. Got \(3, 4\) and \(2"),
    ):
        with pytest.raises(ParameterError, match=told):
            call()


class Odd(nn.Module):
    """Give a tuple inside, use one layer twice and another never."""

    def __init__(self):
        super().__init__()
        self.pair = nn.LSTM(28, 10, batch_first=True)
        self.twice, self.unused = nn.ReLU(), nn.Linear(10, 10)

    def forward(self, images):
        return self.twice(self.twice(self.pair(images[:, 0])[0][:, -1]))


@pytest.mark.parametrize("layer", ["pair", "twice", "unused"])
def test_a_layer_that_gives_no_one_tensor_is_refused(layer, some):
    with pytest.raises(ParameterError, match=rf"^layer_outputs\(\): 'layer' must be .* Layer '{layer}' does not"):
        layer_outputs(Odd(), layer, some.images[:2])


@pytest.mark.parametrize("train_features", [distil_features, train_on_hints])
@pytest.mark.parametrize("kind", ["hint", "attention", "similarity"])
def test_a_layer_before_which_nothing_learns_is_refused(train_features, kind, some, choose):
    half_frozen = thin_cnn()
    half_frozen[0].requires_grad_(False)
    for student, layer in (
        (nn.Sequential(nn.MaxPool2d(2), *thin_cnn()[:1], *thin_cnn()[2:]), "0"),
        (half_frozen, "relu1"),
    ):
        with pytest.raises(
            ParameterError,
            match=rf"^{train_features.__name__}\(\): 'student_layer' must be a layer "
            rf"whose output depends on weights .* That of '{layer}' does not",
        ):
            train_features(
                student,
                load_trained("cnn"),
                some,
                validation=choose,
                student_layer=layer,
                teacher_layer="relu1",
                kind=kind,
                epochs=1,
            )


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", None, True])
def test_weights_are_not_negative(weight, some, choose):
    with pytest.raises(ParameterError, match=r"distil_features\(\): 'weight' must be a number in \[0, 1e6\]\. Got"):
        distil_features(
            thin_cnn(),
            load_trained("cnn"),
            some,
            validation=choose,
            student_layer="relu1",
            teacher_layer="relu1",
            weight=weight,
            epochs=1,
        )


def test_other_slips_are_refused_at_once(some, choose):
    layers = {"validation": choose, "student_layer": "relu1", "teacher_layer": "relu1", "epochs": 1}
    for train_features in (distil_features, train_on_hints):
        with pytest.raises(ParameterError, match=r"'kind' must be one of hint, .* Did you mean 'attention'"):
            train_features(thin_cnn(), load_trained("cnn"), some, kind="atention", **layers)
        twelve = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(784, 12))
        with pytest.raises(ParameterError, match=r"\(2, 10\) and \(2, 12\)"):
            train_features(thin_cnn(), twelve, some, **layers)
        with pytest.raises(ParameterError, match=rf"{train_features.__name__}\(\): the data must be a tuple"):
            train_features(thin_cnn(), load_trained("cnn"), some.images, **layers)
        with pytest.raises(ParameterError, match=r"'seed' must be a whole number"):
            train_features(thin_cnn(), load_trained("cnn"), some, seed=-1, **layers)
        with pytest.warns(UserWarning, match="Did you swap them") as told:
            train_features(load_trained("cnn"), thin_cnn(), some, progress=False, **layers)
        assert told[0].filename == __file__  # the learner's own line
    with pytest.raises(ParameterError, match=r"distil_features\(\): the labels must be 0 to 9"):
        distil_features(thin_cnn(), load_trained("cnn"), Split(some.images, some.labels + 3), **layers)
    with pytest.raises(ParameterError, match="'temperature'"):
        distil_features(thin_cnn(), load_trained("cnn"), some, temperature=0, **layers)


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(4 * 13 * 13, 10)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


def test_a_student_runs_whose_code_behind_the_layer_reads_only_its_own_memory_layout(few, validation):
    layers = {"student_layer": "conv", "teacher_layer": "conv", "validation": validation}
    student, teacher = Views(), Views()
    trained, _history = train_on_hints(student, teacher, few, **layers, **ONCE)
    assert torch.equal(trained(few.images), predict(trained, few.images))
    assert torch.equal(trained.fc.weight, student.fc.weight) and not torch.equal(
        trained.conv.weight, student.conv.weight
    )


@pytest.mark.parametrize("function", [distil_features, train_on_hints])
def test_epochs_are_asked_for_in_the_functions_own_name(function, few, validation):
    layers = {"student_layer": "fc1", "teacher_layer": "fc1"}
    with pytest.raises(TypeError, match=rf"^{function.__name__}\(\) missing .* 'epochs'"):
        function(build_model("mlp128"), build_model("mlp128"), few, validation=validation, **layers)
