"""The one training loop: it learns, keeps the best epoch, repeats itself, and stops clearly."""

import copy
import math
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd_lab.errors import ParameterError, TrainingError
from kd_lab.evaluation import accuracy
from kd_lab.networks.predictions import BATCH_SIZE, predict
from kd_lab.networks.zoo import build_model
from kd_lab.training import Epoch, History, Settings, _batches, train, train_live


def fit(model, data, validation, loss_fn=F.cross_entropy, **settings):
    return train(model, data, loss_fn, validation=validation, **{"epochs": 2, "progress": False, **settings})


def same_weights(one, other):
    return all(torch.equal(*pair) for pair in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "name", ["mlp128", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lenet5_classic", "resnet"))]
)
def test_it_learns(name, few, validation):
    model, history = fit(build_model(name), few, validation, epochs=3, batch_size=64)
    assert accuracy(model, validation).value > 0.8
    assert len(history.train_loss) == len(history.validation_loss) == 3
    assert history.stopped == "finished" and history.seconds > 0
    assert not model.training


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
@pytest.mark.parametrize("penalty", [None, lambda model: 1e-4 * model[1].weight.square().sum()], ids=["no", "penalty"])
def test_it_does_what_a_loop_by_hand_does(schedule, penalty, few, validation):
    trained, history = fit(
        build_model("mlp128"),
        few,
        validation,
        learning_rate=1e-3,
        weight_decay=0.1,
        seed=7,
        schedule=schedule,
        penalty=penalty,
    )
    model = build_model("mlp128")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=2 * 8)
    if schedule == "constant":
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)  # without the first rate of the cycle
    torch.manual_seed(7)
    for _ in range(2):
        for index in torch.randperm(2000).split(256):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(few.images[index]), few.labels[index])
            (loss + penalty(model) if penalty else loss).backward()
            optimizer.step()
            if schedule == "one_cycle":
                one_cycle.step()
    assert history.best_epoch == 2
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, trained.state_dict()[name], atol=1e-5)


def test_it_starts_without_the_code_of_torch_compile(few, validation, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error, and takes a second or two
    train(build_model("mlp128"), few, F.cross_entropy, validation=validation, epochs=1, progress=False)


def test_an_epoch_may_be_a_few_steps_over_the_same_batches(few, validation):
    whole, _ = fit(build_model("mlp128"), few, validation, schedule="constant")
    parts, history = fit(build_model("mlp128"), few, validation, schedule="constant", epochs=4, steps_per_epoch=4)
    assert len(history.epochs) == history.best_epoch == 4
    assert same_weights(whole, parts)


def test_the_penalty_is_not_part_of_the_losses(few, validation):
    _, plain = fit(build_model("mlp128"), few, validation, epochs=1, learning_rate=1e-9)
    _, history = fit(
        build_model("mlp128"),
        few,
        validation,
        epochs=1,
        learning_rate=1e-9,
        penalty=lambda model: 1000 + 0 * model[1].weight.sum(),
    )
    assert history.train_loss == pytest.approx(plain.train_loss)
    assert history.validation_loss == pytest.approx(plain.validation_loss)


def test_a_penalty_that_is_no_number_stops_the_training(few, validation):
    with pytest.raises(TrainingError, match="NaN or infinite in epoch 1"):
        fit(build_model("mlp128"), few, validation, penalty=lambda model: model[1].weight.sum() * math.nan)


@pytest.mark.parametrize(
    "count, batch_size, sizes",
    [(10, 3, [3, 3, 4]), (9, 3, [3, 3, 3]), (11, 3, [3, 3, 3, 2]), (1, 3, [1]), (4, 3, [4]), (3, 1, [1, 2])],
)
def test_a_single_image_joins_the_last_batch_and_all_are_seen(count, batch_size, sizes):
    batches = _batches(count, batch_size, seed=0)
    for _ in range(2):
        epoch = [next(batches) for _ in sizes]
        assert [len(batch) for batch in epoch] == sizes
        assert torch.cat(epoch).sort().values.tolist() == list(range(count))


def test_running_it_twice_gives_the_same_and_leaves_all_else_alone(few, validation):
    model = nn.Sequential(build_model("mlp128"), nn.Dropout(0.2)).train()
    before, numbers = copy.deepcopy(model), torch.get_rng_state()
    (one, first), (two, second) = (fit(model, few, validation) for _ in range(2))
    assert same_weights(one, two) and first.validation_loss == second.validation_loss
    assert same_weights(model, before) and model.training
    assert torch.equal(torch.get_rng_state(), numbers)
    assert not same_weights(one, fit(model, few, validation, seed=1)[0])


def test_the_epoch_with_the_best_validation_loss_is_kept(few, validation):
    hundred = few[:100]
    model, history = fit(build_model("lenet300"), hundred, validation, epochs=40, batch_size=10, learning_rate=0.01)
    assert history.best_epoch < 40  # a hundred images are learned by heart
    loss = F.cross_entropy(predict(model, validation.images), validation.labels).item()
    assert loss == pytest.approx(min(history.validation_loss), rel=1e-4)


def test_batches_carry_any_number_of_targets(few, validation):
    def distil(logits, labels, teacher_logits):
        return F.cross_entropy(logits, labels) + F.mse_loss(logits, teacher_logits)

    teacher = build_model("mlp128", seed=1)
    parts = [(*part, predict(teacher, part.images)) for part in (few, validation)]
    _, history = fit(build_model("mlp128"), *parts, loss_fn=distil)
    assert history.validation_loss[-1] < history.validation_loss[0]
    assert same_weights(teacher, build_model("mlp128", seed=1))


def test_convolutions_are_trained_channels_last(few, validation):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    trained, _ = fit(network, few[:256], validation[:100], epochs=1)
    assert trained[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous()


def test_frozen_weights_stay(few, validation):
    model = build_model("mlp128")
    model[1].requires_grad_(False)
    trained, _ = fit(model, few, validation, weight_decay=0.5)
    assert torch.equal(trained[1].weight, model[1].weight) and not torch.equal(trained[3].weight, model[3].weight)


class Failing:
    """Cross-entropy that does something else at its call number `when`."""

    def __init__(self, when, deed):
        self.calls, self.when, self.deed = 0, when, deed

    def __call__(self, logits, labels):
        self.calls += 1
        loss = F.cross_entropy(logits, labels)
        return self.deed(loss) if self.calls >= self.when else loss


def interrupt(loss):
    failing.when = math.inf  # the learner presses stop once
    raise KeyboardInterrupt


PROBES, BATCHES, VALIDATION_BATCHES = 2, 8, 1000 // BATCH_SIZE


@pytest.mark.parametrize(("epoch", "batch"), [(0, 3), (1, 3), (1, BATCHES + 2)])
def test_an_interrupt_keeps_what_was_learned_and_says_where_it_stopped(few, validation, epoch, batch, capsys):
    global failing
    failing = Failing(PROBES + epoch * (BATCHES + VALIDATION_BATCHES) + batch, interrupt)
    model, history = fit(build_model("mlp128"), few, validation, loss_fn=failing, epochs=50)
    assert history.stopped == "interrupted"
    assert capsys.readouterr().out == (
        f"train(): interrupted in epoch {epoch + 1} of 50: the weights of epoch {history.best_epoch} are returned, "
        "which may be worse than those of a whole training.\n"
    )
    assert len(history.validation_loss) == epoch + 1
    assert accuracy(model, validation).value > accuracy(build_model("mlp128"), validation).value
    assert not model.training


class Twice(Failing):
    """An interrupt, and another one at once, while the kit still judges what was learned."""

    def __init__(self, when):
        super().__init__(when, self.interrupt)
        self.left = 2

    def interrupt(self, loss):
        self.left -= 1
        if self.left == 0:
            self.when = math.inf
        raise KeyboardInterrupt


def test_an_interrupt_is_said_on_a_line_of_its_own_behind_the_progress_bar(few, validation, capsys):
    global failing
    failing = Failing(PROBES + 3, interrupt)
    fit(build_model("mlp128"), few, validation, loss_fn=failing, progress=True)
    bar, message, end = capsys.readouterr().out.rsplit("\n", 2)
    assert bar.split("\r")[-1].startswith("training: ") and message.startswith("train(): interrupted in epoch 1 of 2: ")
    assert not end


def test_a_second_interrupt_keeps_the_epochs_before(few, validation):
    loss_fn = Twice(PROBES + BATCHES + VALIDATION_BATCHES + 3)
    model, history = fit(build_model("mlp128"), few, validation, loss_fn=loss_fn, epochs=50)
    assert loss_fn.left == 0 and len(history.epochs) == 1 and history.stopped == "interrupted"
    loss = F.cross_entropy(predict(model, validation.images), validation.labels).item()
    assert loss == pytest.approx(history.validation_loss[0], rel=1e-4)


def test_an_interrupt_before_anything_was_learned_is_one(few, validation):
    with pytest.raises(KeyboardInterrupt):
        fit(build_model("mlp128"), few, validation, loss_fn=Twice(PROBES + 1))


def test_an_interrupt_while_an_epoch_is_recorded_keeps_history_and_weights_in_step(few, validation, monkeypatch):
    epochs = []

    def interrupted_append(self, losses):
        epochs.append(losses)
        if len(epochs) == 2:
            raise KeyboardInterrupt  # the weights are cloned already, the losses not yet recorded
        list.append(self, losses)

    history_list = type("Epochs", (list,), {"append": interrupted_append})
    monkeypatch.setattr("kd_lab.training.History", lambda: History(history_list()))
    model, history = fit(build_model("mlp128"), few, validation, epochs=5)
    loss = F.cross_entropy(predict(model, validation.images), validation.labels).item()
    assert len(history.epochs) == 2 and loss == pytest.approx(min(history.validation_loss), rel=1e-4)


def test_dropout_works_while_training_and_the_batches_stay_the_same(few, validation):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            if self.training and len(x) > 2:
                seen.append(x.sum().item())
            return x

    plain = nn.Sequential(Spy(), build_model("mlp128")).eval()
    fit(plain, few, validation)
    batches, seen[:] = list(seen), []
    fit(nn.Sequential(Spy(), nn.Dropout(0.5), build_model("mlp128")).eval(), few, validation)
    assert len(batches) == 2 * BATCHES and seen == batches


def test_a_single_image_left_over_joins_the_last_batch(few, validation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))  # can't normalise a batch of one
    assert fit(model, few[:257], validation)[1].stopped == "finished"


def test_nan_in_the_first_epoch_is_an_error_that_names_the_setting(few, validation):
    with pytest.raises(TrainingError, match=r"train\(\): the loss became NaN or infinite in epoch 1\. 'learning_rate'"):
        fit(build_model("mlp128"), few, validation, loss_fn=Failing(PROBES + 3, lambda loss: loss * math.nan))


def test_nan_later_keeps_the_best_epoch_and_warns(few, validation):
    when = PROBES + BATCHES + VALIDATION_BATCHES + 3
    message = r"in epoch 2\. 'learning_rate' is 0\.003; try 0\.0003\. The weights of epoch 1 are kept"
    with pytest.warns(UserWarning, match=message):
        model, history = fit(
            build_model("mlp128"), few, validation, epochs=5, loss_fn=Failing(when, lambda loss: loss * math.inf)
        )
    assert history.stopped == "diverged" and len(history.train_loss) == 1
    assert accuracy(model, validation).value > 0.5


def test_a_real_divergence_ends_clearly(few, validation):
    with warnings.catch_warnings(action="ignore"):
        try:
            model, _ = fit(build_model("lenet300"), few, validation, learning_rate=10, weight_decay=100, epochs=5)
            assert all(torch.isfinite(weight).all() for weight in model.parameters())
        except TrainingError as error:
            assert "'learning_rate' is 10; try 1" in str(error)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", 10**6),
        ("epochs", "3"),
        ("epochs", True),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("learning_rate", 100),
        ("learning_rate", math.nan),
        ("learning_rate", None),
        ("batch_size", 0),
        ("batch_size", 10**7),
        ("batch_size", 12.0),
        ("weight_decay", -1),
        ("weight_decay", math.inf),
        ("seed", None),
        ("seed", 1.5),
        ("seed", -1),
        ("learning_rate", 10**400),
        ("steps_per_epoch", 0),
        ("steps_per_epoch", 2.5),
    ],
)
def test_bad_settings_are_refused(setting, value, few, validation):
    with pytest.raises(ParameterError, match=rf"^train\(\): '{setting}' must be a (whole )?number in .* Got "):
        fit(build_model("mlp128"), few, validation, **{setting: value})


def test_bad_data_is_refused_before_anything_is_trained(few, validation):
    model = build_model("mlp128")
    wrong = {
        "can't read images": (few.images[:, :, :20], few.labels),
        "finite": (few.images * math.nan, few.labels),
        "labels must be 0 to 9": (few.images, few.labels + 5),
        "not empty": (few.images[:0], few.labels[:0]),
        "'loss_fn' can't compare": (few.images, few.labels.float()),
    }
    for message, data in wrong.items():
        for parts in ((data, validation), (few, data)):
            with pytest.raises(ParameterError, match=rf"^train\(\): .*{message}"):
                fit(model, *parts)
    assert same_weights(model, build_model("mlp128"))


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda logits, labels: F.cross_entropy(logits, labels).detach(), "Got a detached one"),
        (lambda logits, labels: 0.5, "a tensor with one number. Got float"),
        (lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"), r"one number\. Got shape \(2,\)"),
    ],
)
def test_what_is_no_loss_is_refused(loss_fn, message, few, validation):
    with pytest.raises(ParameterError, match=rf"^train\(\): 'loss_fn' must return .*{message}"):
        fit(build_model("mlp128"), few, validation, loss_fn=loss_fn)


def test_a_penalty_and_a_schedule_are_looked_at_first(few, validation):
    with pytest.raises(ParameterError, match=r"'penalty' must return a tensor with one number\. Got float"):
        fit(build_model("mlp128"), few, validation, penalty=lambda model: 0.1)
    for penalty in ("l1", lambda: 0, lambda model: model[7].weight.sum(), 3):
        with pytest.raises(ParameterError, match=r"^train\(\): 'penalty' can't judge the model: "):
            fit(build_model("mlp128"), few, validation, penalty=penalty)
    with pytest.raises(ParameterError, match=r"'schedule' must be one of .* Did you mean 'constant'\?"):
        fit(build_model("mlp128"), few, validation, schedule="constnt")


def test_a_frozen_network_is_refused(few, validation):
    with pytest.raises(ParameterError, match="weights are all frozen"):
        fit(build_model("mlp128").requires_grad_(False), few, validation)


def test_nan_targets_are_not_blamed_on_the_learning_rate(few, validation):
    logits = torch.full((2000, 10), math.nan)
    with pytest.raises(ParameterError, match="the targets must be finite"):
        fit(build_model("mlp128"), (*few, logits), validation)


def test_class_counts_that_differ_are_named(few, validation):
    five = nn.Sequential(nn.Flatten(), nn.Linear(784, 5))
    with pytest.raises(ParameterError, match="labels must be 0 to 4, since the model has 5 outputs"):
        fit(five, few, validation)


def test_the_progress_bar_is_plain_text(few, validation, capsys):
    train(build_model("mlp128"), few, F.cross_entropy, validation=validation, epochs=1)
    printed = capsys.readouterr()
    assert "training: 100%" in printed.out and "validation loss" in printed.out and not printed.err


def test_one_image_is_enough(validation):
    one = validation[:1]
    assert fit(build_model("mlp128"), one, one)[1].stopped == "finished"


def test_a_history_plots_itself():
    history = History([Epoch(0.5, 0.4), Epoch(0.3, 0.3), Epoch(0.2, 0.35)])
    axes = history.plot()
    assert history.best_epoch == 2
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [history.train_loss, history.validation_loss]
    assert axes.lines[2].get_xdata() == [2, 2] and axes.get_xlabel() == "epoch"
    assert all(tick == round(tick) for tick in axes.get_xticks())
    plt.close("all")


def test_a_live_training_is_the_same_training_seen_epoch_by_epoch(few, validation):
    settings = {"validation": validation, "epochs": 3, "steps_per_epoch": 4, "seed": 2}
    model, history = train(build_model("mlp128"), few, F.cross_entropy, progress=False, **settings)
    random_numbers = torch.get_rng_state()
    seen = [
        (live, list(so_far.epochs))
        for live, so_far in train_live(build_model("mlp128"), few, F.cross_entropy, **settings)
    ]
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert [len(epochs) for _, epochs in seen] == [1, 2, 3, 3] and seen[-1][1] == history.epochs
    torch.testing.assert_close(seen[-1][0].state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_live_training_checks_and_reports_in_its_own_name(few, validation):
    settings = {"validation": validation, "epochs": 2, "steps_per_epoch": 4}
    with pytest.raises(ParameterError, match=r"train_live\(\): 'learning_rate'"):
        next(train_live(build_model("mlp128"), few, F.cross_entropy, learning_rate=0, **settings))
    loss = lambda logits, labels: F.cross_entropy(logits, labels) / 0
    with pytest.raises(TrainingError, match=r"train_live\(\): the loss became NaN"):
        list(train_live(build_model("mlp128"), few, loss, **settings))


class Viewing(nn.Module):
    """A network as the tutorials write it: `view` behind a pooling."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 7 * 7, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).view(-1, 16 * 7 * 7))


class Depth(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 9, 9), stride=(1, 5, 5)), nn.Flatten())
        self.append(nn.Linear(32, 10))


@pytest.mark.parametrize("network", [Viewing, Depth])
def test_a_network_that_needs_its_own_memory_layout_is_trained_as_by_hand(network, few, validation):
    torch.manual_seed(0)
    model = network()
    trained, _ = fit(model, few[:128], validation[:50], epochs=1, batch_size=64, schedule="constant")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0)
    for index in torch.randperm(128, generator=torch.Generator().manual_seed(0)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(few.images[index]), few.labels[index]).backward()
        optimizer.step()
    torch.testing.assert_close(trained.state_dict(), model.state_dict(), rtol=1e-3, atol=1e-5)
    live = train_live(network(), few[:128], F.cross_entropy, validation=validation[:50], epochs=1, steps_per_epoch=1)
    assert len(list(live)) == 2


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_labels_of_any_whole_dtype_train_alike(dtype, few, validation):
    two = [(part.images, part.labels % 2) for part in (few, validation)]
    expected, _ = fit(build_model("mlp128"), *two, epochs=1)
    found, _ = fit(build_model("mlp128"), *((images, labels.to(dtype)) for images, labels in two), epochs=1)
    assert same_weights(found, expected)


def test_numbers_of_numpy_train_as_ordinary_ones(few, validation):
    ordinary = {"epochs": 1, "seed": 3, "batch_size": 100, "learning_rate": 0.0078125, "steps_per_epoch": 2}
    kinds = {int: np.int64, float: np.float32}
    expected, _ = fit(build_model("mlp128"), few, validation, **ordinary)
    found, _ = fit(build_model("mlp128"), few, validation, **{k: kinds[type(v)](v) for k, v in ordinary.items()})
    assert same_weights(found, expected)
    settings = Settings(**{name: kinds[type(value)](value) for name, value in ordinary.items()})
    assert {type(value) for value in vars(settings).values()} <= {int, float, str, bool}


def test_targets_and_images_with_a_history_teach_without_it(few, validation):
    teacher, scale = build_model("mlp128", seed=1), torch.ones((), requires_grad=True)
    parts = [(part.images * scale, part.labels, teacher(part.images)) for part in (few, validation)]
    kept = [tuple(each.detach() for each in part) for part in parts]
    loss_fn = lambda logits, _labels, answers: F.mse_loss(logits, answers)
    (found, _), (expected, _) = (fit(build_model("mlp128"), *each, loss_fn=loss_fn) for each in (parts, kept))
    assert same_weights(found, expected)
    assert scale.grad is None and all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_what_surrounds_a_training_does_not_change_it(surroundings, few, validation):
    expected, _ = fit(build_model("mlp128"), few, validation)
    with surroundings():
        found, _ = fit(build_model("mlp128"), few, validation)
        settings = {"validation": validation, "epochs": 1, "steps_per_epoch": 2}
        for model, _ in train_live(build_model("mlp128"), (few.images + 0, few.labels), F.cross_entropy, **settings):
            assert not torch.is_grad_enabled()
            live = model
    assert same_weights(found, expected)
    F.cross_entropy(live(few.images), few.labels).backward()


class Words(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.embedding = nn.Embedding(5, 10, sparse=sparse)

    def forward(self, x):
        return self.embedding(x.flatten(1).long() % 5).mean(1)


def test_sparse_gradients_are_named(few, validation):
    fit(Words(False), few, validation, epochs=1)
    with pytest.raises(ParameterError, match=r"^train\(\): 'model' must have dense gradients"):
        fit(Words(True), few, validation)


def test_a_batch_of_one_that_cannot_be_normalised_is_named(few, validation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))
    with pytest.raises(ParameterError, match=r"^train\(\): the model can't be trained on a batch of 1: Expected more"):
        fit(model, few[:7], validation, batch_size=1)
    assert fit(model, few[:8], validation[:1], batch_size=4)[1].stopped == "finished"  # one image to judge it is enough


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_network_is_named(few, validation):
    with pytest.raises(ParameterError, match=r"^train\(\): 'model' must be .* torch\.jit has compiled"):
        fit(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), few, validation)


@pytest.mark.parametrize("error", [AssertionError("mine"), KeyError("mine"), AttributeError("mine"), OSError("mine")])
def test_an_error_of_a_learners_own_loss_is_the_cause(error, few, validation):
    def loss_fn(logits, labels):
        raise error

    with pytest.raises(ParameterError, match=r"^train\(\): 'loss_fn' can't compare .*mine") as caught:
        fit(build_model("mlp128"), few, validation, loss_fn=loss_fn)
    assert caught.value.__cause__ is error


class Forgetful(nn.Module):
    """A network whose own `train` and `eval` return nothing, with a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.network, self.noisy, self.notes = build_model("mlp128"), True, ["note"]

    def train(self, mode=True):
        super().train(mode)
        self.noisy = mode

    def eval(self):
        self.train(False)

    def forward(self, x):
        return self.network(x) + (torch.full((), 5.0) if self.noisy else 0)

    def get_extra_state(self):
        return self.notes

    def set_extra_state(self, state):
        self.notes = state


def test_a_class_with_modes_and_state_of_its_own_is_trained_and_judged_in_them(few, validation):
    model, history = fit(Forgetful(), few, validation)
    assert not model.noisy and model.notes == ["note"]
    loss = F.cross_entropy(predict(model, validation.images), validation.labels).item()
    assert loss == pytest.approx(min(history.validation_loss), rel=1e-4)


class Versioned(nn.Linear):
    """Read only state that says of which version it is, as torch's own quantized layers do."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *more):
        assert local_metadata["version"] == 3
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)


def test_a_layer_that_asks_for_the_version_of_its_state_is_trained(few):
    model = nn.Sequential(nn.Flatten(), Versioned(784, 10))
    trained, _ = train(model, few, F.cross_entropy, validation=few, epochs=1, progress=False)
    assert not trained[1].weight.equal(model[1].weight)
