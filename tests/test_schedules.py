"""Pruning in steps follows its row of sparsities, keeps to its tolerance, ends, and says how far it got."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kd_lab.checkpoints import load_trained
from kd_lab.cost import count_nonzeros
from kd_lab.errors import ParameterError
from kd_lab.evaluation import accuracy
from kd_lab.networks.permanent import make_permanent
from kd_lab.networks.zoo import build_model
from kd_lab.pruning import cubic_sparsities, prune, prune_gradually, prune_until, rewind
from kd_lab.training import train


def test_cubic_sparsities_by_hand():
    assert cubic_sparsities(0.8, 2) == pytest.approx([0.8 * 7 / 8, 0.8])
    assert cubic_sparsities(0.9, 1) == [0.9]
    assert cubic_sparsities(0.9, 2, start=0.5) == pytest.approx([0.85, 0.9])
    row = cubic_sparsities(0.95, 20)
    steps = [b - a for a, b in zip([0, *row], row, strict=False)]
    assert steps == sorted(steps, reverse=True) and row[-1] == pytest.approx(0.95)


def test_gradual_pruning_prunes_and_fine_tunes_in_turn():
    seen = []
    model = load_trained("mlp128")
    pruned = prune_gradually(model, 0.9, 3, lambda model: seen.append(count_nonzeros(model)) or model)
    assert seen == [count_nonzeros(prune(model, sparsity)) for sparsity in cubic_sparsities(0.9, 3)]
    assert count_nonzeros(pruned) == seen[-1]
    seen.clear()
    prune_gradually(model, 0.9, 2, copy.deepcopy, start=0.5, prune=lambda model, step: seen.append(step) or model)
    assert seen == cubic_sparsities(0.9, 2, 0.5)
    assert count_nonzeros(model) == 101_770  # the one it was given stays as it is


def test_masks_hold_through_momentum_between_the_prunings(few, validation):
    def fine_tune(model):
        tuned, _ = train(model, few, F.cross_entropy, validation=validation, epochs=2, weight_decay=0.1, progress=False)
        assert count_nonzeros(tuned) <= count_nonzeros(model)
        assert not torch.equal(tuned[1].weight, model[1].weight)
        for name in (1, 3):
            assert not tuned[name].weight[model[name].parametrizations.weight[0].mask.logical_not()].any()
        return tuned

    tuned = prune_gradually(load_trained("mlp128"), 0.95, 3, fine_tune)
    assert accuracy(tuned, validation).value > 0.9


def test_fine_tuning_gets_accuracy_back(few, validation):
    def fine_tune(model):
        return train(model, few, F.cross_entropy, validation=validation, epochs=3, progress=False)[0]

    dense = load_trained("lenet300")
    at_once, gradually = prune(dense, 0.97), prune_gradually(dense, 0.97, 3, fine_tune)
    assert accuracy(gradually, validation).value > accuracy(at_once, validation).value + 0.1


def test_a_step_that_costs_too_much_is_taken_back(validation):
    dense = load_trained("lenet300")
    best, outcome = prune_until(dense, 0.98, validation, copy.deepcopy, tolerance=0.01)
    assert accuracy(best, validation).value >= accuracy(dense, validation).value - 0.01
    assert 0.6 < outcome.reached < 0.98
    sparsities = [attempt.sparsity for attempt in outcome.attempts]
    restored = [attempt.sparsity for attempt in outcome.attempts if not attempt.kept]
    assert restored and all(attempt.difference.value < -0.01 for attempt in outcome.attempts if not attempt.kept)
    assert count_nonzeros(best) == count_nonzeros(prune(dense, outcome.reached))
    assert sparsities[0] == pytest.approx(0.2)
    assert f"reached {outcome.reached:.3f} of 0.980" in repr(outcome) and "restored" in repr(outcome)


@pytest.mark.parametrize(
    "limit, expected", [(0.5, [0.4, 0.64, 0.52, 0.46, 0.514, 0.487, 0.51265]), (0, [0.4, 0.2, 0.1, 0.05])]
)
def test_steps_are_shares_of_what_is_left_and_halved_by_each_restoration(limit, expected, validation):
    def ruin(model, sparsity):
        model = copy.deepcopy(model)
        if sparsity > limit:
            torch.nn.init.zeros_(model[3].weight)
        return model

    dense = load_trained("mlp128")
    best, outcome = prune_until(dense, 0.9, validation[:200], copy.deepcopy, tolerance=0, step=0.4, prune=ruin)
    assert [attempt.sparsity for attempt in outcome.attempts] == pytest.approx(expected)
    assert [attempt.kept for attempt in outcome.attempts] == [sparsity <= limit for sparsity in expected]
    assert best is not dense and torch.equal(best[3].weight, dense[3].weight)


def test_a_target_in_reach_is_reached_exactly(validation):
    dense = load_trained("lenet300")
    best, outcome = prune_until(dense, 0.3, validation, copy.deepcopy, tolerance=0.05)
    assert outcome.reached == 0.3 and [attempt.kept for attempt in outcome.attempts] == [True, True]
    assert count_nonzeros(best) == count_nonzeros(prune(dense, 0.3))


def test_a_target_out_of_reach_ends_with_the_best_model(validation):
    dense = load_trained("mlp128")
    ruined = partial(prune, importance="random")
    best, outcome = prune_until(dense, 0.99, validation[:200], copy.deepcopy, tolerance=0, step=0.9, prune=ruined)
    assert len(outcome.attempts) <= 20 and outcome.reached < 0.3
    assert accuracy(best, validation[:200]).value >= accuracy(dense, validation[:200]).value


def test_a_step_that_empties_a_layer_is_taken_back_like_any_other(validation):
    dense = build_model("mlp128")  # untrained, so that no step costs much
    best, outcome = prune_until(dense, 0.99999, validation[:200], copy.deepcopy, tolerance=0.5, step=0.9)
    emptied = [attempt for attempt in outcome.attempts if attempt.difference is None]
    assert emptied and not any(attempt.kept for attempt in emptied) and "a layer emptied" in repr(outcome)
    assert count_nonzeros(best) == count_nonzeros(prune(dense, outcome.reached)) and outcome.reached >= 0.9


def lose_masks(model):
    settled = make_permanent(model)
    with torch.no_grad():
        settled[1].weight += 0.01  # as an optimizer would
    return settled


def lose_one(model):
    tuned = make_permanent(model)
    with torch.no_grad():
        tuned[3].weight.view(-1)[(tuned[3].weight == 0).flatten().nonzero()[0]] = 1e-3
    return tuned


def permanent(model, sparsity):
    return make_permanent(prune(model, sparsity))


LOSING = [
    (lose_masks, prune, r"'fine_tune' must keep at zero what was pruned\. Got [\d,]+ of [\d,]+ .* back in layer 'fc1'"),
    (lose_one, prune, r"Got 1 of [\d,]+ weights back in layer 'fc2'"),
    (lose_masks, permanent, "back in layer 'fc1'"),
    (lambda model: make_permanent(prune(model, 0)), permanent, None),  # masked no more, but zero all the same
    (lambda _model: None, prune, r"'fine_tune' must return a network .*NoneType\. Is the line missing"),
    (lambda _model: build_model("lenet300"), prune, "'fine_tune' must return the network that it got"),
    (lambda _model: torch.nn.Linear(784, 10), prune, "'fine_tune' must return the network that it got"),
    (copy.deepcopy, lambda model, _sparsity: (model, 0), "'prune' must return a network .* Got tuple"),
]


@pytest.mark.parametrize("fine_tune, cut, told", LOSING)
@pytest.mark.parametrize("gradually", [True, False])
def test_what_a_learners_functions_give_is_measured(gradually, fine_tune, cut, told, validation):
    model = load_trained("mlp128")
    before = copy.deepcopy(model.state_dict())

    def call():
        if gradually:
            return prune_gradually(model, 0.8, 2, fine_tune, prune=cut)
        return prune_until(model, 0.5, validation[:100], fine_tune, step=0.5, tolerance=0.5, prune=cut)[0]

    if told is None:
        assert count_nonzeros(call()) <= 0.55 * count_nonzeros(model)
    else:
        with pytest.raises(ParameterError, match=rf"^prune_(gradually|until)\(\): .*{told}"):
            call()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_functions_that_change_what_they_get_harm_no_earlier_network(validation):
    def spoil(model, sparsity):
        pruned = prune(model, sparsity)
        torch.nn.init.zeros_(model[3].weight if not hasattr(model[3], "parametrizations") else model[3].bias)
        return pruned

    def tune(model):
        with torch.no_grad():
            model[3].bias += 1e-4
        return model

    dense = load_trained("mlp128")
    best, outcome = prune_until(dense, 0.9, validation[:200], tune, tolerance=0, step=0.9, prune=spoil)
    assert accuracy(best, validation[:200]).value >= accuracy(dense, validation[:200]).value
    assert count_nonzeros(dense) == 101_770 and outcome.reached > 0


def ends_after(steps, error):
    """Return a fine-tuning that raises an error once it was called so many times."""
    left = iter(range(steps))

    def fine_tune(model):
        if next(left, None) is None:
            raise error
        return model

    return fine_tune


ENDS = {
    "Interrupted.": KeyboardInterrupt(),
    "RuntimeError: out of memory.": RuntimeError("out of memory"),
    "train(): 'epochs' is missing.": ParameterError("'epochs' is missing.", "train"),
}


@pytest.mark.parametrize("told", ENDS)
def test_what_ends_pruning_early_keeps_the_steps_that_are_finished(told, validation, capsys):
    dense, error = load_trained("mlp128"), ENDS[told]
    best, outcome = prune_until(dense, 0.9, validation[:200], ends_after(2, error), tolerance=0.5)
    assert outcome.reached == pytest.approx(0.36) and len(outcome.attempts) == 2
    assert count_nonzeros(best) == count_nonzeros(prune(dense, outcome.reached))
    assert f"{told} 2 steps are done." in capsys.readouterr().out


def test_an_interrupt_keeps_the_finished_steps_of_a_gradual_pruning_and_an_error_does_not(capsys):
    dense = load_trained("mlp128")
    pruned = prune_gradually(dense, 0.9, 5, ends_after(2, KeyboardInterrupt()))
    assert count_nonzeros(pruned) == count_nonzeros(prune(dense, cubic_sparsities(0.9, 5)[1]))
    assert "Interrupted. 2 of 5 steps are done." in capsys.readouterr().out
    with pytest.raises(ValueError, match="full"):
        prune_gradually(dense, 0.9, 5, ends_after(2, ValueError("full")))


@pytest.mark.parametrize("error", ENDS.values(), ids=ENDS)
def test_what_ends_pruning_before_a_step_is_finished_is_raised(error, validation, capsys):
    dense = load_trained("mlp128")
    for call in (
        lambda: prune_until(dense, 0.9, validation[:200], ends_after(0, error), tolerance=0.5),
        lambda: prune_gradually(dense, 0.9, 5, ends_after(0, error)),
    ):
        with pytest.raises(type(error)):
            call()
    assert "done" not in capsys.readouterr().out


def test_zeros_are_measured_where_prune_means_something_else_by_sparsity(validation):
    dense = load_trained("mlp128")
    _, outcome = prune_until(
        dense, 0.5, validation[:200], copy.deepcopy, tolerance=0.5, step=0.5, prune=lambda model, _sparsity: model
    )
    assert outcome.reached == 0.5 and outcome.attempts[0].zeros == 0
    assert "reached 0.500 of 0.500; measured: 0.000 of all weights" in repr(outcome)
    _, outcome = prune_until(dense, 0.5, validation[:200], copy.deepcopy, tolerance=0.5, step=0.5)
    assert outcome.attempts[0].zeros == pytest.approx(0.5, abs=1e-5) and "measured" not in repr(outcome)


def test_a_ticket_has_the_initial_weights_under_the_masks():
    initial = build_model("mlp128")
    pruned = prune(load_trained("mlp128"), 0.8)
    ticket = rewind(pruned, initial)
    mask = pruned[1].parametrizations.weight[0].mask
    assert torch.equal(ticket[1].weight, initial[1].weight * mask)
    assert torch.equal(ticket[1].bias, initial[1].bias)
    assert count_nonzeros(initial) == 101_770
    ticket[1].parametrizations.weight[0].mask.zero_()
    assert mask.any()  # a mask of its own


def test_bad_input_is_refused_before_anything_is_pruned(validation):
    model = load_trained("mlp128")
    never = lambda model: pytest.fail("must not be called")
    for target, message in ((50, r"Got 50\. Did you mean 0\.5\?"), (1, "Got 1"), (0, "Got 0"), ("0.5", "Did you mean")):
        with pytest.raises(ParameterError, match=message):
            prune_until(model, target, validation, never)
    with pytest.raises(ParameterError, match="'tolerance' must be a number in"):
        prune_until(model, 0.5, validation, never, tolerance=2)
    with pytest.raises(ParameterError, match="'step' must be a number in"):
        prune_until(model, 0.5, validation, never, step=0)
    with pytest.raises(ParameterError, match=r"'step' must be a number in \[0\.05, 1\)\. Got 0\.01"):
        prune_until(model, 0.5, validation, never, step=0.01)  # with which nothing would be tried
    for data, message in ((validation[:0], "not empty"), ((validation.images, validation.labels + 5), "0 to 9")):
        with pytest.raises(ParameterError, match=rf"^prune_until\(\): .*{message}"):
            prune_until(model, 0.5, data, never)
    for call in (
        lambda **functions: prune_gradually(model, 0.5, 1, **{"fine_tune": never, **functions}),
        lambda **functions: prune_until(model, 0.5, validation, **{"fine_tune": never, **functions}),
    ):
        for name, value in (("fine_tune", None), ("prune", "random")):
            with pytest.raises(ParameterError, match=f"'{name}' must be a function .* Got {value!r}"):
                call(**{name: value})
    with pytest.raises(ParameterError, match=r"^prune_gradually\(\): 'start' must be .* \[0, 0\.5\]\. Got 0\.6"):
        prune_gradually(model, 0.5, 3, never, start=0.6)
    with pytest.raises(ParameterError, match=r"^prune_gradually\(\): 'steps' must be a whole number"):
        prune_gradually(model, 0.5, 0, never)
    with pytest.raises(ParameterError, match=r"tuple\. Did you mean model, history = train"):
        prune_gradually(model, 0.5, 1, lambda model: (model, None))
    with pytest.raises(ParameterError, match=r"^prune_until\(\): .* tuple\. Did you mean model, history = train"):
        prune_until(model, 0.5, validation, lambda model: (model, None))
    with pytest.raises(ParameterError, match=r"rewind\(\): 'pruned' must have masks"):
        rewind(make_permanent(prune(model, 0.5)), model)
    with pytest.raises(ParameterError, match=r"rewind\(\): 'pruned' must have masks.* swapped"):
        rewind(model, prune(model, 0.5))
    with pytest.raises(ParameterError, match=r"^rewind\(\): the mask of layer 'fc1' must be .* shape \(300, 784\)"):
        rewind(prune(model, 0.5), build_model("lenet300"))
    with pytest.raises(ParameterError, match=r"^rewind\(\): 'model' must be a network"):
        rewind(prune(model, 0.5), "mlp128")
