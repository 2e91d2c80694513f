"""Trained networks ship, hold what they say, and are trained once where they are missing; students by their recipe."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.faults import damage_checkpoints, one_epoch_recipe, race_to_train
from kd_lab import checkpoints, storage
from kd_lab.checkpoints import RECIPES, SHIPPED, cached_path, load_pretrained, load_trained, student_recipe
from kd_lab.data import Mnist, Split
from kd_lab.distillation import layer_outputs
from kd_lab.errors import DamagedFileError, ParameterError, StorageError, TrainingError
from kd_lab.evaluation import accuracy
from kd_lab.formats import load_network
from kd_lab.networks.zoo import MODELS, build_model, small_student
from kd_lab.storage import load_tensors, save_tensors
from kd_lab.training import History, train

ONE_STEP = {"task": "masked", "epochs": 1, "steps_per_epoch": 1, "batch_size": 32}


@pytest.fixture
def quick(tmp_path, mnist, few, validation):
    with one_epoch_recipe(tmp_path, mnist._replace(train=few, validation=validation)):
        yield


def test_they_are_small():
    assert sum(file.stat().st_size for file in SHIPPED.glob("*.safetensors")) < 6_000_000
    assert {file.stem for file in SHIPPED.glob("*.safetensors")} == {*MODELS, "hinton_logits", "cnn_pretrained"}
    assert set(MODELS) == set(RECIPES)


def test_each_call_gives_a_network_of_its_own():
    one = load_trained("mlp128")
    one[1].weight.data.zero_()
    assert not one.training and load_trained("mlp128")[1].weight.count_nonzero() > 0


def test_a_missing_network_is_trained_once_and_then_read(quick, monkeypatch, capsys):
    first = load_trained("mlp128", seed=3)
    assert "Training mlp128" in capsys.readouterr().out
    monkeypatch.setattr(checkpoints, "train", None)
    assert torch.equal(load_trained("mlp128", seed=3)[1].weight, first[1].weight)


def test_one_command_trains_what_ships(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "RECIPES", {"mlp128": RECIPES["mlp128"]})
    monkeypatch.setattr(checkpoints, "REPOSITORY_DATA", tmp_path)
    monkeypatch.setattr(checkpoints, "PRETRAINING", ONE_STEP)
    checkpoints.main()
    made = tmp_path / "checkpoints" / "mlp128.safetensors"
    assert torch.equal(load_network(made)[1].weight.half(), load_tensors(made)[0]["fc1.weight"].half())
    assert load_tensors(made)[1]["best_epoch"] == 1
    pretrained = load_tensors(tmp_path / "checkpoints" / "cnn_pretrained.safetensors")
    assert pretrained[0]["conv1.weight"].dtype == torch.float16 and pretrained[1]["recipe"] == ONE_STEP


def test_a_network_is_pretrained_once_by_images_alone_and_then_read(quick, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "PRETRAINING", ONE_STEP)
    first = load_pretrained("mlp128", 3)
    assert "Training mlp128_pretrained" in capsys.readouterr().out and first.architecture == "mlp128"
    shuffled = Mnist(*(Split(part.images, part.labels.flip(0)) for part in checkpoints.load_mnist()))
    monkeypatch.setattr(checkpoints, "load_mnist", lambda: shuffled)
    assert torch.equal(load_pretrained("mlp128", 3).fc1.weight, first.fc1.weight)
    cached_path("mlp128", 3, "mlp128_pretrained", ONE_STEP).unlink()
    assert torch.equal(load_pretrained("mlp128", 3).fc1.weight, first.fc1.weight)  # other labels, the same encoder
    assert not cached_path("mlp128", 3).exists()


def test_the_encoder_that_ships_has_never_been_told_what_a_digit_is(mnist):
    encoder, data = load_pretrained(), mnist.validation[:2000]
    assert encoder.architecture == "cnn" and not encoder.training
    assert accuracy(encoder, data).value < 0.4  # its last layer has initial weights
    features = F.normalize(layer_outputs(encoder, "fc1", data.images).relu())
    likeness = (features @ features.T).fill_diagonal_(-1)
    assert (data.labels[likeness.argmax(1)] == data.labels).float().mean() > 0.93  # and yet like lies by like


def test_another_seed_or_recipe_is_another_file(monkeypatch):
    paths = {cached_path("cnn", 0), cached_path("cnn", 1), cached_path("lenet5", 0)}
    monkeypatch.setitem(RECIPES, "cnn", RECIPES["cnn"] | {"epochs": 11})
    assert len(paths | {cached_path("cnn", 0)}) == 4


PATHS_OF_VERSION_0_1 = {  # where version 0.1 kept what it had trained with seed 1
    "mlp128": "mlp128-37ef188c6962.safetensors",
    "lenet300": "lenet300-438f42156613.safetensors",
    "cnn": "cnn-d618d0f0893b.safetensors",
    "lenet5": "lenet5-c139a81458f7.safetensors",
    "lenet5_classic": "lenet5_classic-cec2d8fa4de8.safetensors",
    "resnet": "resnet-70b5061cf40c.safetensors",
}

PARTS = [("fc1", "weight"), ("fc1", "bias"), ("fc2", "weight"), ("fc2", "bias")]


@pytest.mark.parametrize("name", PATHS_OF_VERSION_0_1)
def test_what_version_0_1_has_trained_is_still_found(name):
    assert cached_path(name, 1).name == PATHS_OF_VERSION_0_1[name]


def test_and_it_is_loaded_in_its_old_words(monkeypatch):
    model = build_model("mlp128", seed=1)
    names = {"fc1": "1", "fc2": "3"}
    tensors = {f"{names[layer]}.{kind}": model.get_submodule(layer).state_dict()[kind] for layer, kind in PARTS}
    monkeypatch.setattr(storage, "SCHEMA", 1)
    save_tensors(cached_path("mlp128", 1), tensors, {"model": "mlp128", "seed": 1})
    monkeypatch.setattr(checkpoints, "make_checkpoint", lambda *_: pytest.fail("It was trained once more."))
    loaded = load_trained("mlp128", seed=1)
    assert loaded.architecture == "mlp128" and not loaded.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_network_under_the_name_of_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    (tmp_path / "cnn.safetensors").write_bytes((SHIPPED / "mlp128.safetensors").read_bytes())
    with pytest.raises(StorageError, match=r"holds a mlp128, not a cnn"):
        load_trained("cnn")


def test_half_precision_is_kept_only_where_no_answer_changes(validation):
    model = build_model("mlp128")
    assert checkpoints._halve_if_same(model, validation.images[:10])["fc1.weight"].dtype == torch.float16
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([1.0, 1.00001, *[0] * 8]))  # half precision can't tell the first two apart
    assert checkpoints._halve_if_same(model, validation.images[:10])["fc1.weight"].dtype == torch.float32


@pytest.mark.parametrize(("stopped", "error"), [("interrupted", KeyboardInterrupt), ("diverged", TrainingError)])
def test_a_training_that_did_not_end_well_is_not_kept(quick, monkeypatch, stopped, error):
    history = History(stopped=stopped)
    monkeypatch.setattr(checkpoints, "train", lambda model, *arguments, **settings: (model, history))
    with pytest.raises(error):
        load_trained("mlp128", seed=4)
    assert not cached_path("mlp128", 4).exists()


def test_a_damaged_network_is_set_aside_and_can_be_trained_again(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    damaged = tmp_path / "mlp128.safetensors"
    damaged.write_bytes((SHIPPED / "mlp128.safetensors").read_bytes()[:-5])
    with pytest.raises(DamagedFileError, match=r"set aside as .*damaged\. Run this again to train mlp128 afresh"):
        load_trained("mlp128")
    assert not damaged.exists() and len(list(tmp_path.glob("*.damaged"))) == 1
    assert not load_trained("mlp128").training


def test_a_file_of_the_learners_own_stays_where_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("my notes")
    with pytest.raises(StorageError, match=r"was not saved by kd_lab|is damaged"):
        load_network(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "my notes"


def test_a_shared_cache_that_can_only_be_read_is_enough(quick, monkeypatch):
    first = load_trained("mlp128", seed=5)
    monkeypatch.setattr(checkpoints, "lock", None)
    assert torch.equal(load_trained("mlp128", seed=5)[1].weight, first[1].weight)


def test_another_architecture_names_the_first_five_differing_tensors():
    with pytest.raises(StorageError) as caught:
        load_network(SHIPPED / "lenet300.safetensors", build_model("cnn"))
    message = str(caught.value)
    assert "lenet300.safetensors does not hold a network of the layers of 'model': 10 tensors differ" in message
    assert "first conv1.weight ((16, 1, 3, 3) expected, absent in the file)" in message
    assert message.count("expected") == 5


def test_another_shape_under_the_same_name_is_named(tmp_path):
    state = build_model("mlp128").state_dict()
    state["fc2.bias"] = torch.zeros(11)
    save_tensors(tmp_path / "wide.safetensors", state, {"architecture": "mlp128"})
    with pytest.raises(StorageError, match=r"first fc2\.bias \(\(10,\) expected, \(11,\) in the file\)"):
        load_network(tmp_path / "wide.safetensors")


@pytest.mark.parametrize(("name", "seed"), [("lenet", 0), ("cnn", -1), ("cnn", 1.5), (None, 0)])
def test_bad_arguments_are_refused(name, seed):
    with pytest.raises(ParameterError, match=r"^load_trained\(\): "):
        load_trained(name, seed)


def test_damaged_networks_never_load():
    assert damage_checkpoints(30)["faults.silent"] == 0


@pytest.mark.slow
def test_of_eight_processes_one_trains_and_another_takes_over():
    figures = race_to_train(2)
    assert figures["faults.trainers_max"] == figures["faults.trainers_min"] == 1
    assert figures["faults.takeovers"] == 1


def test_the_kept_logits_belong_to_the_images_in_their_order(mnist):
    kept = checkpoints.load_hinton_logits()
    for logits, part, wrong in ((kept.train, mnist.train, 0.003), (kept.validation, mnist.validation, 0.009)):
        assert logits.shape == (len(part.labels), 10) and logits.dtype == torch.float32
        assert (logits.argmax(1) != part.labels).float().mean() < wrong


# ---- small students


@pytest.mark.parametrize("images", [0, 2.5, None])
def test_no_recipe_for_no_images(images):
    with pytest.raises(ParameterError, match=r"student_recipe\(\): 'images' must be a whole number"):
        student_recipe(images)


def test_a_student_learns_by_its_recipe(few, validation):
    student, history = train(
        small_student(), few, F.cross_entropy, validation=validation, progress=False, **student_recipe(len(few.images))
    )
    assert len(history.epochs) == 20 and accuracy(student, validation).value > 0.85


@pytest.mark.parametrize("images", [1, 500, 1001, 55_000, 1_000_000])
def test_every_number_of_images_has_a_recipe(images):
    assert student_recipe(images)["steps_per_epoch"] >= 1


@pytest.mark.parametrize("most", [1000, 5000, 20_000])
def test_a_recipe_reaches_up_to_the_next(most):
    assert student_recipe(most - 1) == student_recipe(most) != student_recipe(most + 1)
