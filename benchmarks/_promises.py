"""What each public function promises for any network, by plain torch.

A promise takes a case, calls one function with its network, and raises a Difference where plain torch says something
else.
"""

import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import kd_lab.compression as compression
import kd_lab.cost as cost
import kd_lab.deployment as deployment
import kd_lab.distillation as distillation
import kd_lab.evaluation as evaluation
import kd_lab.exercises.clinic as clinic
import kd_lab.factorization as factorization
import kd_lab.formats as formats
import kd_lab.networks as networks
import kd_lab.panels as panels
import kd_lab.penalties as penalties
import kd_lab.pretraining as pretraining
import kd_lab.pruning as pruning
import kd_lab.quantization as quantization
from benchmarks._judge import (
    Case,
    Difference,
    Values,
    close,
    computes_with_its_weights,
    holds,
    logits,
    module_of,
    own_weights,
    parameter_of,
    plain,
    same,
    same_answers,
    seen,
    snapshot,
    unchanged,
    used,
    with_weights,
)
from kd_lab.compression.stages import RecipeTuning, Stage
from kd_lab.data import Mnist, Split
from kd_lab.deployment.litert import exported_program
from kd_lab.errors import KdLabError, ParameterError
from kd_lab.networks import layer_inputs
from kd_lab.scorecard import scorecard
from kd_lab.training import train, train_live

PANEL_IMAGES, FEW_INPUTS = 200, 300  # least squares takes a minute for thousands of inputs
NOISE = 1e-10  # mean squares of what is nothing but rounding, as the mean behind a LayerNorm
SMALLEST_GRADIENT = 1e-5  # all smaller ones may be rounding, which a LayerNorm of zeros makes large
SPARSITY, RATIO, TEMPERATURE, ALPHA, LEARNING_RATE = 0.5, 0.3, 2.0, 0.5, 1e-3
QUIET = {"progress": False, "epochs": 1, "batch_size": 64, "learning_rate": LEARNING_RATE, "schedule": "constant"}


# networks, cost


def finds_every_layer(case: Case) -> None:
    """Every Linear layer and convolution is found, with the weight that it uses, and can be described."""
    layers = networks.weighted_layers(case.model)
    holds("a layer is another module", set(layers.values()) <= set(case.model.modules()))
    holds("a layer has no description", all(map(networks.describe, layers.values())))
    found = used(case.build())
    for name, module in case.plain.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            holds(
                f"{name}, a {type(module).__name__}, is missing",
                name in found or any(parameter_of(case.plain, other) is module.weight for other in found),
            )
    for name, value in found.items():
        same(f"the weights of {name}", value, parameter_of(case.plain, name))


def predicts(case: Case) -> None:
    """The answers are those of evaluation mode."""
    same("the logits", networks.predict(case.model, case.images), case.logits)
    with networks.evaluation_mode(case.model), torch.no_grad():
        same("the logits in evaluation mode", case.model(case.images.clone()), case.logits)


def settles(case: Case) -> None:
    """A permanent network has no parametrization, and the same answers."""
    permanent = networks.make_permanent(case.model)
    holds("it still has parametrizations", not any(map(parametrize.is_parametrized, permanent.modules())))
    same_answers("the permanent network", permanent, case.plain, case)


def settles_masks(case: Case) -> None:
    """Masks and quantizers made permanent change no answer."""
    pruned = pruned_and_quantized(case.model)
    answers = logits(pruned, case)
    same("the logits", logits(networks.make_permanent(pruned), case), answers)


def pruned_and_quantized(model: nn.Module) -> nn.Module:
    """Return a network with masks and quantizers."""
    pruned = pruning.prune(model, SPARSITY, scope="per_layer")
    return quantization.quantize_weights(pruned, 4, calibration="min_max")


def scores(case: Case) -> None:
    """The accuracy is the share of largest logits that are the label's; the loss is their mean cross-entropy."""
    classes = case.logits.argmax(1)
    right = classes == case.labels
    holds("other data are scored", all(map(torch.equal, evaluation.check_scorable(case.model, case.part), case.part)))
    holds("other classes", torch.equal(evaluation.predict_classes(case.model, case.images), classes))
    holds("other answers are right", torch.equal(evaluation.correct_answers(case.model, case.part), right))
    found = evaluation.accuracy(case.model, case.part)
    holds(f"{found} is another accuracy", (found.correct, found.count) == (int(right.sum()), len(right)))
    loss = evaluation.mean_cross_entropy(case.model, case.part)
    same("the loss", loss, F.cross_entropy(case.logits, case.labels))


def compares(case: Case) -> None:
    """The paired difference counts on which images only one of two is right."""
    right, other = (logits(plain(case, seed), case).argmax(1) == case.labels for seed in (0, 1))
    found = evaluation.paired_difference(case.model, case.build(1), case.part)
    counts = int((right & ~other).sum()), int((other & ~right).sum())
    holds(f"{found.gained}, {found.lost} are not {counts}", (found.gained, found.lost) == counts)


def counts_parameters(case: Case) -> None:
    """Every number that the network computes with counts once."""
    expected = sum(parameter.numel() for parameter in case.plain.parameters())
    same("parameters", cost.count_parameters(case.model), expected, 0)


def counts_nonzeros(case: Case) -> None:
    """Every parameter that is not zero counts once; a pruned network has no more than parameters."""
    expected = sum(int(parameter.count_nonzero()) for parameter in case.plain.parameters())
    same("non-zeros", cost.count_nonzeros(case.model), expected, 0)


def counts_macs(case: Case) -> None:
    """They are half of what torch's counter finds where nothing is fused."""
    found = cost.count_macs(case.model, case.images)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), FlopCounterMode(display=False) as counter:
            case.plain(case.images[:1].clone())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    same("MACs", found, counter.get_total_flops() // 2, 0)


def counts_bytes(case: Case) -> None:
    """A file has room for every tensor, once or twice, and little more."""
    tensors = case.build().state_dict().values()
    every = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    once = sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
    found = cost.file_bytes(case.model)
    holds(f"a file of {found} bytes for tensors of {every}", once <= found <= every + 200 * (len(tensors) + 1))
    zipped = cost.zipped_bytes(case.model)
    holds("zipped it is larger", 0 < zipped <= found + 500)
    holds("zipped in steps it is another", list(cost.zip_stepwise(case.model))[-1] == zipped)


def takes_time(case: Case) -> None:
    """A pass takes some time, but no second."""
    holds("no time", 0 < cost.latency(case.model, 2, case.images) < 10)


def fills_a_scorecard(case: Case) -> None:
    """A scorecard has the same figures as its functions."""
    card = scorecard({"dense": case.model, "other": case.build(1)}, case.part)
    right = int((case.logits.argmax(1) == case.labels).sum())
    same("correct answers", card["dense"].accuracy.correct, right, 0)
    same("parameters", card["dense"].parameters, sum(each.numel() for each in case.plain.parameters()), 0)
    holds("it can't be shown", "accuracy" in repr(card))


def sums_up_penalties(case: Case) -> None:
    """Penalties are sums over the weights that are used."""
    expected = [parameter.detach() for parameter in case.found_weights.values()]
    model = case.build().eval()  # a weight with spectral norm changes when it is read in training mode
    same("Σ|w|", penalties.l1_penalty(model), sum(weight.abs().sum() for weight in expected))
    same("Σw²", penalties.l2_penalty(model), sum(weight.square().sum() for weight in expected))
    rows = {name: weight.detach().flatten(1) for name, weight in case.found_weights.items() if has_rows(case, name)}
    lasso = sum(row.shape[1] ** 0.5 * row.norm(dim=1).sum() for row in rows.values())
    same("Σ√n·‖w‖₂", penalties.group_lasso_penalty(model, list(rows)), lasso)
    holds("it is far from itself", penalties.match_parameters(case.model, 1.0)(model) < 1e-3)


def has_rows(case: Case, name: str) -> bool:
    """Return whether the first axis of a layer's weight counts its outputs."""
    return not isinstance(dict(case.plain.named_modules()).get(name), _ConvTransposeNd)


def reads_parameters(case: Case) -> None:
    """Every parameter is found once, as it is used."""
    found = penalties.used_parameters(case.build().eval())
    expected = dict(case.plain.named_parameters(remove_duplicate=False))
    same("parameters", len(found), len(list(case.plain.parameters())), 0)
    for name, parameter in found.items():
        same(name, parameter, expected[name])


# pruning


def own_importances(case: Case, importance: str) -> Values:
    """Return |w|, |g| or |w·g| of every weight that the kit prunes, by plain torch."""
    weights = case.found_weights
    if importance in ("magnitude", "random"):
        return {name: weight.detach().abs() for name, weight in weights.items()}
    loss = F.cross_entropy(case.plain.requires_grad_(True)(case.images.clone()), case.labels)
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    by_name = dict(zip(weights, gradients, strict=True))
    if importance == "gradient":
        return {name: gradient.abs() for name, gradient in by_name.items()}
    return {name: (weights[name].detach() * gradient).abs() for name, gradient in by_name.items()}


def ranks(case: Case) -> None:
    """Every importance is what it is called: |w|, |g| or |w·g| of each weight."""
    for importance in ("magnitude", "gradient", "weight_gradient"):
        found, expected = pruning.importances(case.model, importance, case.part), own_importances(case, importance)
        holds("other shapes", all(found[name].shape == each.shape for name, each in expected.items()))
        # together: where those of another layer are large, small ones are nothing but rounding
        ours, plain_ones = (torch.cat([each[name].flatten() for name in expected]) for each in (found, expected))
        if plain_ones.max() > SMALLEST_GRADIENT:
            same(importance, ours, plain_ones)
        if importance == "gradient":
            gradients = pruning.average_gradients(case.model, case.part)
            holds("other gradients", all(gradients[name].abs().equal(found[name]) for name in found))


def masks(case: Case) -> None:
    """A masked weight is zero where the mask says so."""
    model = case.build()
    kept = {
        name: torch.arange(weight.numel()).view(weight.shape) % 3 > 0 for name, weight in case.found_weights.items()
    }
    pruning.set_masks(model, kept)
    expected = {name: weight * kept[name] for name, weight in case.found_weights.items()}
    same_answers("the masked network", model, with_weights(case, expected), case)


def cuts(pruned: nn.Module, case: Case, groups: list[Values], sparsity: float) -> None:
    """Raise a Difference unless the least important weights of each group are zero, the others as they were."""
    before, after = case.found_weights, used(pruned)
    for sizes in groups:
        old, new = (torch.cat([table[name].flatten() for name in sizes]).detach() for table in (before, after))
        size, gone = torch.cat([sizes[name].flatten() for name in sizes]), (new == 0) & (old != 0)
        same("kept weights", new[~gone], old[~gone])
        wanted, zeros = round(sparsity * len(old)), int((old == 0).sum())
        holds(f"{int(gone.sum())} weights are pruned, not {wanted}", wanted - zeros <= gone.sum() <= wanted)
        kept = ~gone & (old != 0)
        if gone.any() and kept.any():
            rounding = 1e-4 * size.max() + SMALLEST_GRADIENT
            holds("more important weights are pruned", size[gone].max() <= size[kept].min() + rounding)
    computes_with_its_weights("the pruned network", pruned, case)


def prunes(case: Case, importance: str, scope: str) -> None:
    """The least important weights of all, or of each layer, are zero."""
    data = case.part if "gradient" in importance else None
    pruned = pruning.prune(case.model, SPARSITY, importance, scope, data=data)
    sizes = own_importances(case, importance)
    if importance == "random":
        sizes = {name: torch.zeros_like(size) for name, size in sizes.items()}
    cuts(pruned, case, [sizes] if scope == "global" else [{name: size} for name, size in sizes.items()], SPARSITY)
    holds("more non-zeros than parameters", cost.count_nonzeros(pruned) <= cost.count_parameters(case.model))


def prunes_layer_adaptively(case: Case) -> None:
    """The weights whose square is smallest beside those of their layer that are no smaller are zero."""
    sizes = {}
    for name, weight in case.found_weights.items():
        squares, order = weight.detach().double().square().flatten().sort()
        left = squares.flip(0).cumsum(0).flip(0).clamp(min=1e-300)
        sizes[name] = torch.empty_like(squares).index_copy_(0, order, squares / left).view(weight.shape)
    cuts(pruning.prune_layer_adaptive(case.model, SPARSITY), case, [sizes], SPARSITY)


def prunes_n_of_m(case: Case) -> None:
    """Of four consecutive weights of a row the two smallest are zero."""
    pruned = pruning.prune_n_m(case.model)
    after = used(pruned)
    for name, weight in case.found_weights.items():
        outputs = isinstance(module_of(case.plain, name), _ConvTransposeNd)  # each word's row stands for itself
        rows, found = (each.transpose(0, int(outputs)).flatten(1) for each in (weight.detach(), after[name]))
        for start in range(0, rows.shape[1], 4):
            part, kept = rows[:, start : start + 4], found[:, start : start + 4] != 0
            smallest = part.abs().masked_fill(~kept, math.inf).amin(1)
            largest = part.abs().masked_fill(kept, 0).amax(1)
            holds("more than two of four are kept", (kept.sum(1) <= 2).all())
            holds("larger ones are pruned", (largest <= smallest).all())
    computes_with_its_weights("the pruned network", pruned, case)


def prunes_with_compensation(case: Case) -> None:
    """The first layer's kept weights are those that its output misses least; other layers stay as they are."""
    names, candidates = list(case.found_weights), products(case)
    first, last = candidates[0], candidates[-1]
    chosen = {name: SPARSITY for name in (first, last) if case.found_weights[name][0].numel() <= FEW_INPUTS}
    pruned = pruning.prune_least_squares(case.model, chosen, case.images)
    before, after = case.found_weights, used(pruned)
    for name in names:
        gone = int(((after[name] == 0) & (before[name] != 0)).sum())
        wanted = round(SPARSITY * before[name].numel()) if name in chosen else 0
        holds(f"{gone} weights of {name} are pruned, not {wanted}", gone == wanted)
    computes_with_its_weights("the pruned network", pruned, case)
    module = case.plain.get_submodule(first)
    if first in chosen and type(module) is nn.Linear and (taken := seen(case.plain, [first], case).get(first)):
        x = torch.cat([each.flatten(0, -2) for each in taken]).double()
        hessian = x.T @ x / len(x)
        size = hessian.diagonal().mean()
        hessian += 0.01 * size * torch.eye(len(hessian))
        for dense, row in zip(before[first].detach().double(), after[first], strict=True):
            kept = row != 0
            if kept.any() and size > NOISE:
                same("refitted weights", row[kept], torch.linalg.solve(hessian[kept][:, kept], hessian[kept] @ dense))


def products(case: Case) -> list[str]:
    """Return the layers that multiply what they read by a matrix, or all where there is none."""
    known, kinds = dict(case.plain.named_modules()), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [name for name in case.found_weights if isinstance(known.get(name), kinds)] or list(case.found_weights)


def prunes_gradually(case: Case) -> None:
    """It ends at the sparsity."""
    pruned = pruning.prune_gradually(case.model, SPARSITY, 2, lambda model: model)
    cuts(pruned, case, [own_importances(case, "magnitude")], SPARSITY)


def sees_lost_masks(case: Case) -> None:
    """A callback that loses the masks is found out, in either function."""
    lost = {"fine_tune": lambda _model: case.build()}
    for pruned_by in (
        lambda: pruning.prune_gradually(case.model, SPARSITY, 2, **lost),
        lambda: pruning.prune_until(case.model, SPARSITY, case.part, **lost, tolerance=0.5, step=0.4)[0],
    ):
        with suppress(ParameterError):
            after = used(pruned_by())
            same("sparsity", zero_share(after, case), zero_share(case.found_weights, case))


def zero_share(values: Values, case: Case) -> float:
    """Return the share of the weights that are zero."""
    weights = torch.cat([values[name].flatten() for name in case.found_weights])
    return float((weights == 0).float().mean())


def prunes_until(case: Case) -> None:
    """What it says it reached is what the returned network has."""
    pruned, attempts = pruning.prune_until(
        case.model, SPARSITY, case.part, lambda model: model, tolerance=0.5, step=0.4
    )
    zeros = zero_share(used(pruned), case)
    rounding = 0.01 + 0.5 / sum(weight.numel() for weight in case.found_weights.values())
    holds(f"says {attempts.reached:.2f}, and has {zeros:.2f} zeros", abs(attempts.reached - zeros) <= rounding)
    computes_with_its_weights("the pruned network", pruned, case)


def rewinds(case: Case) -> None:
    """A ticket has the masks of one network and the weights of another."""
    pruned = pruning.prune(case.model, SPARSITY, scope="per_layer")
    ticket, left = used(pruning.rewind(pruned, case.build(1))), used(pruned)
    initial = own_weights(plain(case, 1), case.found_weights)
    for name, value in initial.items():
        same(f"the weights of {name}", ticket[name], value * (left[name] != 0))


def prunes_channels(case: Case) -> None:
    """Masked channels are removed for good without a change of the answers."""
    data = case.part
    pruned = pruning.prune_channels(case.model, RATIO, data=data)
    computes_with_its_weights("the masked network", pruned, case)
    holds("nothing is masked", cost.count_nonzeros(pruned) <= cost.count_nonzeros(case.model))
    groups = pruning.channel_groups(case.model, case.images)
    after = used(pruned)
    kept = {name: channels_left(case, name, after) for name in groups}
    narrow = pruning.remove_channels(case.model, kept, case.images)
    same_answers("the narrow network", narrow, pruned, case)
    narrow(case.images[:1].clone())


def channels_left(case: Case, name: str, after: Values) -> Tensor:
    """Return which channels of a layer are still computed, (size,) bool; a unit has a row in each gate."""
    layer = case.plain.get_submodule(name)
    if isinstance(layer, nn.RNNBase):
        return after[f"{name}.weight_hh_l0".lstrip(".")].view(-1, layer.hidden_size, layer.hidden_size).any(2).any(0)
    return after[name].transpose(0, output_axis(case, name)).flatten(1).any(1)


def output_axis(case: Case, name: str) -> int:
    """Return the axis of a layer's weight that counts its outputs."""
    return int(isinstance(case.plain.get_submodule(name), (_ConvTransposeNd, nn.Embedding)))


def prunes_hard(case: Case) -> None:
    """What no layer reads goes for good; the answers stay."""
    pruned = pruning.prune_channels(case.model, RATIO, data=case.part)
    expected = logits(pruned, case)
    narrow = pruning.hard_prune(pruned, case.images)
    same("the logits", logits(narrow, case), expected)
    holds(
        "it has more weights", cost.count_parameters(narrow) <= cost.count_parameters(networks.make_permanent(pruned))
    )


def prunes_zeros_hard(case: Case) -> None:
    """A network that was pruned weight by weight keeps its answers, too."""
    pruned = pruning.prune(case.model, 0.8, scope="per_layer")
    expected = logits(pruned, case)
    same("the logits", logits(pruning.hard_prune(pruned, case.images), case), expected)


def removes_layers(case: Case) -> None:
    """A removed module hands on what it takes."""
    names = [name for name, module in case.plain.named_modules() if name and not list(module.children())]
    refusals = [_refuses_or_removes(case, name) for name in names]
    if refusals and all(refusals):
        raise refusals[0]


def _refuses_or_removes(case: Case, name: str) -> KdLabError | None:
    try:
        fewer = pruning.remove_layers(case.model, [name], case.images)
    except KdLabError as error:
        return error
    expected = plain(case)
    expected.set_submodule(name, nn.Identity())
    same_answers(f"the network without {name}", fewer, expected, case)
    return None


def scans(case: Case) -> None:
    """The rise of the loss where one layer is pruned alone is that of plain torch."""
    found = compression.sensitivity_scan(case.model, case.part, [SPARSITY])
    whole = F.cross_entropy(case.logits, case.labels)
    for name, weight in case.found_weights.items():
        cut = weight.detach().clone().flatten()
        cut[cut.abs().argsort(stable=True)[: round(SPARSITY * len(cut))]] = 0
        answers = logits(with_weights(case, {name: cut.view(weight.shape)}), case)
        loss = float(F.cross_entropy(answers, case.labels))
        holds(f"the rise at {name} differs", abs(found[name][SPARSITY] - loss + float(whole)) < 1e-3 * (1 + loss))


def scans_bits(case: Case) -> None:
    """The rise of the loss where one layer is quantized alone is that of plain torch with its rounded weights."""
    found = compression.bit_scan(case.model, case.part, [2])
    whole = F.cross_entropy(case.logits, case.labels)
    for name, value in used(quantization.quantize_weights(case.model, 2)).items():
        loss = float(F.cross_entropy(logits(with_weights(case, {name: value}), case), case.labels))
        holds(f"the rise at {name} differs", abs(found[name][2] - loss + float(whole)) < 1e-3 * (1 + loss))


def scans_ranks(case: Case) -> None:
    """The rise of the loss where one layer alone has rank 1 is that of plain torch with the nearest such matrix."""
    found = compression.rank_scan(case.model, case.part, [1])
    whole = F.cross_entropy(case.logits, case.labels)
    for name, rises in found.items():
        rows = case.found_weights[name].detach().flatten(1)
        holds(f"{name} costs something whole", rises[min(rows.shape)] == 0)
        if len(rises) > 1:
            u, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
            nearest = (s[0] * u[:, :1] @ v[:1]).to(rows).view_as(case.found_weights[name])
            loss = float(F.cross_entropy(logits(with_weights(case, {name: nearest}), case), case.labels))
            holds(f"the rise at {name} differs", abs(rises[1] - loss + float(whole)) < 1e-3 * (1 + loss))


def runs_stage(case: Case, stage: Stage) -> None:
    """A stage without fine-tuning gives a network that computes as the plain one with its parameters."""
    made = networks.make_permanent(stage(case.model, lambda model, _epochs: model))
    expected = plain(case)
    expected.load_state_dict(made.state_dict())
    same_answers(f"the network after {stage}", made, expected, case)


def puts_two_for_one(case: Case) -> None:
    """The stage without fine-tuning gives the network that factorize gives."""
    ranks, tuning = {products(case)[0]: 1}, RecipeTuning(lambda model, _epochs: model, case.images)
    for nearest in factorization.NEAREST:
        made = compression.Factorize(ranks, 0, nearest)(case.model, tuning)
        same_answers("two layers", made, factorization.factorize(case.model, ranks, case.images, nearest), case)


def removes_units(case: Case) -> None:
    """Units that are removed for good leave the answers of those that are masked."""
    made = compression.PruneUnits(RATIO, 0)(case.model, lambda model, _epochs: model)
    same_answers("the narrow network", made, pruning.prune_channels(case.model, RATIO), case)


def searches(case: Case) -> None:
    """A trial says how the network that `fit` gives answers."""
    fit = lambda _temperature, _alpha: case.model
    right, loss = case.logits.argmax(1) == case.labels, F.cross_entropy(case.logits, case.labels)
    trials = compression.search_settings(fit, case.part, runs=1)
    for trial in [*trials, compression.try_setting(fit, TEMPERATURE, ALPHA, case.part)]:
        same("correct answers", trial.accuracy.correct, int(right.sum()), 0)
        same("the loss", trial.loss, loss)


def takes_only_its_own(case: Case, function: Callable[[Case], Any]) -> None:
    """A network that is none of the kit's is refused by what rebuilds networks by name."""
    function(case)
    raise Difference("a network that isn't the kit's was taken")


def whole_data(case: Case) -> Mnist:
    """Return data in three parts."""
    return Mnist(*(Split(*case.data(seed, PANEL_IMAGES)) for seed in range(3)))


def reads_inputs(case: Case) -> None:
    """The inputs of the first layer are those that it took when it was called."""
    name = products(case)[0]
    found = layer_inputs(case.model, name, case.images)
    if isinstance(case.plain.get_submodule(name), nn.Linear):
        same("the inputs", found, torch.cat([each.flatten(0, -2) for each in seen(case.plain, [name], case)[name]]))


def factorizes(case: Case) -> None:
    """Two thin layers of full rank have the network's logits."""
    name = products(case)[0]
    rows = case.found_weights[name].flatten(1)
    for nearest in factorization.NEAREST:
        whole = factorization.factorize(case.model, {name: min(rows.shape)}, case.images, nearest)
        same_answers("two layers", whole, case.plain, case)
        holds("there are no two layers", isinstance(whole.get_submodule(f"{name}.first"), nn.Module))
    two, layer = plain(case), case.plain.get_submodule(name)
    inputs, mean = factorization.about_mean(layer, layer_inputs(case.model, name, case.images))
    factors = factorization.low_rank(rows.detach(), min(rows.shape), inputs)
    two.set_submodule(name, factorization.two_layers(layer, *factors, mean))
    same_answers("two layers of these factors", two, case.plain, case)


# quantization


def own_grid(x: Tensor, num_bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return scale and zero point from the smallest to the largest number, by the textbook."""
    low, high, levels = x.min().clamp(max=0), x.max().clamp(min=0), 2**num_bits
    scale = torch.maximum(-low, high) / (levels // 2 - 1) if symmetric else (high - low) / (levels - 1)
    scale = scale if scale > 0 else torch.tensor(1.0)
    return scale, torch.tensor(0.0) if symmetric else -(levels // 2) - (low / scale).round()


def own_rounded(x: Tensor, num_bits: int, grid: tuple[Tensor, Tensor]) -> Tensor:
    """Return x rounded to a grid."""
    scale, zero_point = grid
    levels = 2 ** (num_bits - 1)
    return (((x * (1 / scale)).round() + zero_point).clamp(-levels, levels - 1) - zero_point) * scale


def quantizes_weights(case: Case, num_bits: int) -> None:
    """Every weight is rounded to its layer's grid, or keeps its sign where it has one bit."""
    rounded = quantization.quantize_weights(case.model, num_bits, "per_tensor", True, "min_max")
    found = used(rounded)
    for name, weight in case.found_weights.items():
        weight = weight.detach()
        signs = weight.sign() * weight.abs()[weight != 0].mean()
        expected = signs if num_bits == 1 else own_rounded(weight, num_bits, own_grid(weight, num_bits, True))
        same(f"the weights of {name}", found[name], expected)
    computes_with_its_weights("the quantized network", rounded, case)


def quantizes_channels(case: Case) -> None:
    """With a grid for each output no weight moves by more than half a step of its layer's."""
    rounded = quantization.quantize_weights(case.model, 4, "per_channel", True, "min_max")
    found = used(rounded)
    for name, weight in case.found_weights.items():
        step = weight.detach().abs().max() / 7
        holds("a weight moves too far", (found[name] - weight).abs().max() <= 0.5001 * step)
    computes_with_its_weights("the quantized network", rounded, case)


def ternarizes(case: Case) -> None:
    """Every weight becomes zero or its sign times the mean of the large ones."""
    ternary = quantization.ternarize_weights(case.model, "per_tensor")
    found = used(ternary)
    for name, weight in case.found_weights.items():
        weight = weight.detach()
        large = weight.abs() > 0.7 * weight.abs().mean()
        same(f"the weights of {name}", found[name], weight.sign() * large * weight.abs()[large].mean())
    computes_with_its_weights("the ternary network", ternary, case)


def shares_weights(case: Case) -> None:
    """A layer's weights become the mean of those that are nearest to the same one of four."""
    shared = quantization.share_weights(case.model, 2)
    after = used(shared)
    for name, weight in case.found_weights.items():
        weight, found = weight.detach(), after[name]
        values = found[weight != 0].unique()
        holds(f"{len(values)} values", len(values) <= 4)
        for value in values:
            same("a value", value, weight[(found == value) & (weight != 0)].mean())
        nearest = (weight.flatten()[:, None] - values).abs().amin(1)
        same("distances", (found - weight).abs().flatten()[weight.flatten() != 0], nearest[weight.flatten() != 0])
    computes_with_its_weights("the network with shared weights", shared, case)


def folds(case: Case) -> None:
    """Folding changes no answer, and no network gets slower by it."""
    same_answers("the folded network", given_images(quantization.fold_batch_norm, case), case.plain, case)


def given_images(function: Callable, case: Case, model: nn.Module | None = None) -> nn.Module:
    """Call a function with images, if it takes any: networks may read others than MNIST's."""
    takes = "images" in function.__code__.co_varnames[: function.__code__.co_argcount]
    return function(model or case.model, *([case.images] if takes else []))


def own_activations(case: Case, model: nn.Module, num_bits: int) -> Tensor:
    """Return the logits where the input of each layer is rounded to the grid of what it read on the images."""
    grids = {
        name: own_grid(torch.cat([each.flatten() for each in taken]), num_bits, False)
        for name, taken in seen(model, module_names(case, model), case).items()
        if taken[0].is_floating_point()
    }
    for name, grid in grids.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, inputs, grid=grid: tuple(
                own_rounded(each, num_bits, grid) if each is inputs[0] else each for each in inputs
            )
        )
    return logits(model, case)


def module_names(case: Case, model: nn.Module) -> list[str]:
    """Return the names of the modules whose weights the kit compresses."""
    known = dict(model.named_modules())
    return [name for name in networks.weighted_layers(case.model) if name in known]


def quantizes_activations(case: Case) -> None:
    """Every layer reads numbers of its grid: the range of what it read at the moment that it was called."""
    found = quantization.quantize_activations(case.model, case.images, 8, "min_max")
    expected = own_activations(case, plain(case), 8)
    effect = float((expected - case.logits).square().mean().sqrt() / case.logits.square().mean().sqrt())
    # what lies between two steps, as behind a LayerNorm of two numbers, may go to either
    close("the logits", logits(found, case), expected, max(0.3 * effect, 3e-3))


def quantizes_models(case: Case, num_bits: int, calibration: str) -> None:
    """At 8 bits the answers are nearly those of floating point; integers answer as the simulation does."""
    simulated = quantization.quantize_model(case.model, case.images, num_bits, num_bits, calibration=calibration)
    expected = logits(simulated, case)
    if num_bits == 8:
        own = own_activations(case, plain(case), 8)
        noise = float((own - case.logits).square().mean().sqrt() / case.logits.square().mean().sqrt())
        close("simulated and whole answers", expected, case.logits, max(0.1, 5 * noise))
    integer = given_images(quantization.to_integer, case, simulated)
    found = logits(integer, case)
    largest = expected.abs().max().clamp(min=1e-6)
    agree = float(((found - expected).abs().amax(1) <= 0.02 * largest).float().mean())
    holds(f"integers agree on {agree:.0%} of the images", agree >= 0.9)


def measures_output_errors(case: Case) -> None:
    """The error of each layer is that of its output as it was when the layer gave it."""
    rounded = quantization.quantize_weights(case.model, 3, calibration="min_max")
    found = quantization.output_errors(rounded, case.build(), case.images)
    names = module_names(case, case.plain)
    right = seen(plain(case), names, case, given=True)
    wrong = seen(with_weights(case, used(rounded)), names, case, given=True)
    for name in found:
        a, b = (torch.cat(each[name]) for each in (wrong, right))
        if b.square().mean() > NOISE:  # behind dead units an output is zero, or nothing but rounding
            same(f"the error of {name}", found[name], (a - b).square().sum() / b.square().sum(), 1e-2)


# files


def round_trips(case: Case, change: Callable[[nn.Module], nn.Module]) -> None:
    """A file reads back to the same predictions."""
    changed = change(case.model)
    with tempfile.TemporaryDirectory() as folder:
        formats.save_network(Path(folder) / "file", changed)
        size = (Path(folder) / "file").stat().st_size
        loaded = formats.load_network(Path(folder) / "file", case.build(1))
    same("the logits", logits(loaded, case), logits(changed, case), 1e-6)
    same("bytes", formats.network_file_bytes(changed), size, 0)


def exports(case: Case, export: Callable, run: Callable, ending: str) -> None:
    """Another runtime answers as torch does, whatever the number of images."""
    with tempfile.TemporaryDirectory() as folder:
        export(case.model, path := Path(folder) / f"file{ending}", case.images)
        deployed = run(path)
    for count in (1, 3, len(case.images)):
        same(f"the logits of {count}", deployed(case.images[:count]), case.plain(case.images[:count].clone()))


def hands_over(case: Case) -> None:
    """What the LiteRT converter is given has the network's logits; the converter itself takes half a minute."""
    image = case.images[:1]
    same("the logits", exported_program(case.model, image).module()(image.clone()), case.plain(image.clone()))


def exports_a_page(case: Case) -> None:
    """What a page holds has the network's logits, which is compared before it is written, or it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        deployment.export_page(case.model, Path(folder) / "page.html")
        holds("the page is empty", (Path(folder) / "page.html").stat().st_size > 0)


def exports_c(case: Case) -> None:
    """A header is written for what runs on integers alone, and compared before that; all else is refused."""
    with tempfile.TemporaryDirectory() as folder:
        deployment.export_c(case.model, Path(folder) / "network.h")
        holds("the header is empty", (Path(folder) / "network.h").stat().st_size > 0)


def serves(case: Case) -> None:
    """Over HTTP come the logits of torch, or a sentence that says why there are none."""
    with deployment.serve({"network": case.model}, case.images, 0, 0) as servers:
        address = f"{servers.http}/v2/models/network"
        (taken,) = requests.get(address, headers=servers.headers, timeout=60).json()["inputs"]
        image = case.images[:1]
        body = {"inputs": [taken | {"shape": list(image.shape), "data": image.flatten().tolist()}]}
        (given,) = requests.post(f"{address}/infer", json=body, headers=servers.headers, timeout=60).json()["outputs"]
    same("the logits", torch.tensor(given["data"]).view(given["shape"]), case.plain(image.clone()).float())


# training


def mean_loss(model: nn.Module, case: Case, loss: Callable[..., Tensor], seed: int) -> float:
    """Return a loss of a model in evaluation mode on one part of the data."""
    return float(loss(logits(model, case, seed), case.data(seed)[1], logits(plain(case, 1), case, seed)))


def own_distillation_loss(student: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """Return Hinton's loss, written out."""
    soft = (teacher / TEMPERATURE).softmax(1)
    log = (student / TEMPERATURE).log_softmax(1)
    divergence = (soft * ((teacher / TEMPERATURE).log_softmax(1) - log)).sum(1).mean()
    return ALPHA * F.cross_entropy(student, labels) + (1 - ALPHA) * TEMPERATURE**2 * divergence


def has_learned(trained: nn.Module, history: Any, case: Case, loss: Callable[..., Tensor]) -> None:
    """Raise a Difference unless the history tells the truth, frozen weights stay, and no step is too long."""
    holds("it is in training mode", not any(module.training for module in trained.modules()))
    expected = mean_loss(trained, case, loss, 1)
    holds("the validation loss is another", abs(history.validation_loss[0] - expected) <= 1e-3 * (1 + abs(expected)))
    stays_within_a_step(trained, case)
    first = case.build().train()
    teacher = logits(plain(case, 1), case)
    losses = [float(loss(first(case.images.clone()), case.labels, teacher).detach()) for _ in range(2)]
    chancy = any(word in case.source for word in ("ropout", "Transformer", "Moody", "running"))  # of another draw
    if not history.train_loss or chancy or losses[0] != losses[1]:
        return
    holds("the training loss is another", abs(history.train_loss[0] - losses[0]) <= 1e-3 * (1 + abs(losses[0])))


def stays_within_a_step(trained: nn.Module, case: Case) -> None:
    """Raise a Difference where a frozen weight has moved, or another by more than the learning rate."""
    after = dict(trained.named_parameters())
    for name, parameter in case.build().named_parameters():
        moved = float((after[name] - parameter).detach().abs().max())
        holds(f"{name}, frozen, was trained", parameter.requires_grad or moved == 0)
        holds(f"{name} moved by {moved}", moved <= 1.01 * LEARNING_RATE)


def trains(case: Case) -> None:
    """One step of training tells the true losses, moves what may move, and leaves what is frozen."""
    loss = lambda student, labels, _teacher: F.cross_entropy(student, labels)
    trained, history = train(case.model, case.part, F.cross_entropy, validation=case.data(1), **QUIET)
    has_learned(trained, history, case, loss)


def trains_live(case: Case) -> None:
    """A training that is looked on tells the same losses."""
    loss = lambda student, labels, _teacher: F.cross_entropy(student, labels)
    steps = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 64, "learning_rate": LEARNING_RATE}
    *_, last = train_live(case.model, case.part, F.cross_entropy, validation=case.data(1), **steps)
    has_learned(*last, case, loss)


def pretrains(case: Case) -> None:
    """A network that has painted masked images has a loss, the same shapes and finite answers."""
    images, others = case.images, case.data(1)[0]
    found, history = pretraining.pretrain(case.model, images, "masked", validation=others, **QUIET)
    holds("the loss is no mean square", 0 < history.validation_loss[0] < math.inf)
    answers = logits(found, case)
    holds("it answers in another shape", answers.shape == case.logits.shape and bool(answers.isfinite().all()))
    shapes = [{name: each.shape for name, each in model.named_parameters()} for model in (case.model, found)]
    holds("it has other parameters", shapes[0] == shapes[1])


def answers_once(case: Case) -> None:
    """A teacher's answers are its logits."""
    images, labels, found = distillation.with_answers(case.model, case.part)
    same("the teacher's logits", found, case.logits)
    holds("other data came back", torch.equal(images, case.images) and torch.equal(labels, case.labels))


def distils(case: Case) -> None:
    """One step of distillation, the teacher being the same network with other weights."""
    teacher = case.build(1)
    before = snapshot(teacher)
    trained, history = distillation.distil(
        case.model, teacher, case.part, validation=case.data(1), temperature=TEMPERATURE, alpha=ALPHA, **QUIET
    )
    has_learned(trained, history, case, own_distillation_loss)
    unchanged("the teacher", teacher, before)


def teaches_small_networks(case: Case) -> None:
    """The first network of a search learns from what the network answers, by plain torch."""
    arguments = {"most_bytes": 100, "runs": 1, "minutes": 1, "epochs": 1, "steps_per_epoch": 1, "progress": False}
    in_turn = lambda function, trials, _folder, **_settings: [function(**trial) for trial in trials]
    with patch("kd_lab.compression.architectures.sweep", in_turn):  # a process takes seconds to start
        found = compression.search_architecture(whole_data(case), case.model, **arguments)
        (live, last) = compression.search_architecture_live(whole_data(case), case.model, **arguments)
    holds("a search that is looked at finds another network", live.ended == last.ended == found.ended)
    (training, labels), (validation, others) = (case.data(seed, PANEL_IMAGES) for seed in range(2))
    _, history = train(
        found.trials[0].design.build(0),
        (training, labels, case.plain(training.clone()).detach()),
        distillation.DistillationLoss(4.0, 0.1),
        validation=(validation, others, case.plain(validation.clone()).detach()),
        **{**QUIET, "batch_size": 128, "steps_per_epoch": 1, "learning_rate": 1e-2, "schedule": "one_cycle"},
    )
    same("the validation loss", found.trials[0].losses[0], history.validation_loss[0])


def distils_features(case: Case, kind: str) -> None:
    """Features are read as the layer gave them; the validation loss is that of plain torch."""
    layer = next(iter(module_names(case, case.plain)))
    trained, history = distillation.distil_features(
        case.model,
        case.build(1),
        case.part,
        validation=case.data(1),
        student_layer=layer,
        teacher_layer=layer,
        kind=kind,
        temperature=TEMPERATURE,
        alpha=ALPHA,
        **QUIET,
    )
    features = [_features(model, layer, case.data(1)[0]) for model in (trained, plain(case, 1))]
    if kind == "similarity":
        features = [F.normalize(each.flatten(1) @ each.flatten(1).T, dim=1) for each in features]
    expected = mean_loss(trained, case, own_distillation_loss, 1) + float(F.mse_loss(*features))
    holds("the validation loss is another", abs(history.validation_loss[0] - expected) <= 1e-3 * (1 + abs(expected)))


def trains_on_hints(case: Case) -> None:
    """The loss is the distance of the two layers' outputs, and what is frozen stays."""
    layer = next(iter(module_names(case, case.plain)))
    trained, history = distillation.train_on_hints(
        case.model, case.build(1), case.part, validation=case.data(1), student_layer=layer, teacher_layer=layer, **QUIET
    )
    stays_within_a_step(trained, case)
    loss = float(F.mse_loss(*(_features(model, layer, case.data(1)[0]) for model in (trained, plain(case, 1)))))
    holds("the validation loss is another", abs(history.validation_loss[0] - loss) <= 1e-3 * (1 + loss))


def gives_hints(case: Case) -> None:
    """A student with hints answers with its logits, and behind them with the layer's output."""
    layer = next(iter(module_names(case, case.plain)))
    found = networks.predict(distillation.Hinted(case.model, layer, nn.Identity()), case.images)
    features = _features(case.plain, layer, case.images)
    same("logits and features", found, torch.cat([case.logits, features.flatten(1)], 1))


def _features(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    found = []
    hook = model.eval().get_submodule(layer).register_forward_hook(lambda _m, _i, given: found.append(given.clone()))
    with hook, torch.no_grad():
        model(images.clone())
    (output,) = found
    return output


def reads_features(case: Case) -> None:
    """The outputs of a layer are those that it gave when it was called."""
    name = next(iter(module_names(case, case.plain)))
    found = distillation.layer_outputs(case.model, name, case.images)
    same("the outputs", found, torch.cat(seen(case.plain, [name], case, given=True)[name]))


# panels


def shows(case: Case, panel: Callable[..., panels.panel.Panel], **arguments: str) -> None:
    """A panel's dense network is the learner's own, and what it shows is drawn."""
    data = whole_data(case)
    shown = panel(case.model, data, **arguments)
    try:
        holds("it shows nothing", shown.flush().png)
        for comparison in shown._answer.comparisons.values():
            with torch.no_grad():
                expected = case.plain(data.validation.images.clone()).argmax(1)
            if panel is not panels.DistillationPanel:  # whose baseline is a student
                holds("its baseline answers otherwise", torch.equal(comparison.dense_answers, expected))
    finally:
        shown.close()


def shows_least_squares(case: Case) -> None:
    """The panel of one layer shows the last one."""
    shows(case, panels.LeastSquaresPanel, layer=list(networks.weighted_layers(case.model))[-1])


def shows_low_rank(case: Case) -> None:
    """The panel of one layer shows one that two can stand for."""
    shows(case, panels.LowRankPanel, layer=products(case)[-1])


def shows_answers_to_drawings(case: Case) -> None:
    """The panel to draw on shows the network's answer to a digit, or says why there is none."""
    panel = panels.DrawingPanel({"network": case.model})
    try:
        answer = case.plain(panel._example.clone()).argmax()
        holds("it shows another answer", panel.flush().title.endswith(f"is read as {answer}"))
    finally:
        panel.close()


# exercises


def finds_what_is_pruned(case: Case) -> None:
    """A network that is returned as it came is red, a pruned one green where fewer numbers are left."""
    pruned = pruning.prune(case.model, SPARSITY, scope="per_layer")
    fewer = cost.count_nonzeros(pruned) < cost.count_nonzeros(case.model)
    holds("nothing is pruned, and it is green", not clinic.is_anything_pruned(lambda network: network, case.model))
    found = clinic.is_anything_pruned(lambda network: pruning.prune(network, SPARSITY, scope="per_layer"), case.model)
    holds(f"fewer numbers: {fewer}, and it is {found}", found.passed == fewer)


def finds_zeros_that_come_back(case: Case) -> None:
    """Zeros of masks stay where the masks are made permanent, and come back where they are lost."""
    pruned = pruning.prune(case.model, SPARSITY, scope="per_layer")
    before, after = used(pruned), used(case.build())
    zeros, back = sum(zero.sum() for zero in _zeros(before, before)), sum(zero.sum() for zero in _zeros(before, after))
    found = clinic.do_zeros_stay(pruned, networks.make_permanent(pruned))
    holds(f"zeros: {zeros}, and it is {found}", found.passed == (zeros > 0))
    found = clinic.do_zeros_stay(pruned, case.model)
    holds(f"zeros: {zeros}, left: {back}, and it is {found}", found.passed == (zeros == back > 0))


def _zeros(before: Values, after: Values) -> list[Tensor]:
    return [(value == 0) & (after[name] == 0) for name, value in before.items()]


def finds_what_is_hard_pruned(case: Case) -> None:
    """Hard pruning is green where it leaves fewer parameters, soft pruning twice is red."""
    soft = pruning.prune_channels(case.model, RATIO)
    hard = pruning.hard_prune(soft)
    found, fewer = clinic.is_hard_smaller(soft, hard, case.images), cost.count_parameters(hard)
    holds(f"it is {found}", found.passed == (fewer < cost.count_parameters(soft)))
    holds("as many parameters, and it is green", not clinic.is_hard_smaller(soft, soft, case.images))


def finds_what_is_rounded(case: Case) -> None:
    """Weights are rounded where no row has more values than the bits allow, and little is lost."""
    rounded = quantization.quantize_weights(case.model, 4, calibration="min_max")
    found, axes = clinic.are_weights_rounded(case.model, rounded, 4), networks.weights(rounded)
    rows = {name: value.movedim(axes[name].output_axis, 0).flatten(1) for name, value in used(rounded).items()}
    few = all(len(row.unique()) <= 16 for each in rows.values() for row in each)
    holds(f"few values: {few}, and it is {found}", found.passed == few or "lost" in found.seen)


def compares_sizes(case: Case) -> None:
    """No network is a smaller student of itself."""
    holds("it is green", not clinic.is_the_student_smaller(case.model, case.model))


def finds_a_frozen_teacher(case: Case) -> None:
    """A teacher asked by `predict` is frozen; one that is called in training mode may not carry a graph."""
    found = clinic.is_the_teacher_frozen(networks.predict, case.model, case.images)
    holds(f"predict is {found}", found)
    graph = case.build().eval()(case.images.clone()).requires_grad
    found = clinic.is_the_teacher_frozen(lambda network, images: network(images), case.model, case.images)
    holds(f"a graph: {graph}, and it is {found}", not (graph and found))


def finds_labels(case: Case) -> None:
    """Training on labels is no pretext task."""
    learn = lambda network, data: train(network, data, F.cross_entropy, validation=case.data(1), **QUIET)
    holds("it is green", not clinic.does_it_need_no_labels(learn, case.model, case.part))


ALL: dict[str, Callable[[Any], None]] = {
    # networks
    "weights, weighted_layers, describe": finds_every_layer,
    "predict, evaluation_mode": predicts,
    "make_permanent": settles,
    "make_permanent of masks": settles_masks,
    "l1_penalty, l2_penalty, group_lasso_penalty, match_parameters": sums_up_penalties,
    "used_parameters": reads_parameters,
    # scores
    "accuracy, mean_cross_entropy, correct_answers, predict_classes, check_scorable": scores,
    "paired_difference": compares,
    "count_parameters": counts_parameters,
    "count_nonzeros": counts_nonzeros,
    "count_macs": counts_macs,
    "file_bytes, zipped_bytes, zip_stepwise": counts_bytes,
    "latency": takes_time,
    # pruning
    **{
        f"prune by {importance}, {scope}": partial(prunes, importance=importance, scope=scope)
        for importance, scope in (
            ("magnitude", "global"),
            ("magnitude", "per_layer"),
            ("gradient", "global"),
            ("weight_gradient", "per_layer"),
            ("random", "global"),
        )
    },
    "importances, average_gradients": ranks,
    "set_masks": masks,
    "prune_layer_adaptive": prunes_layer_adaptively,
    "prune_n_m": prunes_n_of_m,
    "prune_least_squares": prunes_with_compensation,
    "prune_gradually": prunes_gradually,
    "prune_until": prunes_until,
    "prune_gradually, prune_until, masks lost": sees_lost_masks,
    "rewind": rewinds,
    "layer_inputs": reads_inputs,
    "factorize, two_layers, about_mean": factorizes,
    # channels
    "prune_channels, channel_groups, remove_channels": prunes_channels,
    "hard_prune": prunes_hard,
    "hard_prune of single weights": prunes_zeros_hard,
    "remove_layers": removes_layers,
    # quantization
    **{f"quantize_weights, {bits} bits": partial(quantizes_weights, num_bits=bits) for bits in (1, 2, 8)},
    "quantize_weights by channel": quantizes_channels,
    "ternarize_weights": ternarizes,
    "share_weights": shares_weights,
    "fold_batch_norm": folds,
    "quantize_activations": quantizes_activations,
    "quantize_model, to_integer, 8 bits": partial(quantizes_models, num_bits=8, calibration="min_max"),
    "quantize_model, to_integer, 2 bits": partial(quantizes_models, num_bits=2, calibration="least_squares"),
    "output_errors": measures_output_errors,
    # files
    "save_network, load_network, network_file_bytes": partial(round_trips, change=networks.make_permanent),
    "save_network of bits": partial(round_trips, change=pruned_and_quantized),
    "pack": partial(takes_only_its_own, function=lambda case: formats.pack(case.model)),
    "save_packed": partial(takes_only_its_own, function=lambda case: formats.save_packed("file.kdz", case.model)),
    # compression
    "sensitivity_scan": scans,
    "rank_scan": scans_ranks,
    **{
        type(stage).__name__: partial(runs_stage, stage=stage)
        for stage in (compression.FineTune(0), compression.Prune(SPARSITY, 1, 0), compression.Share(2, 0))
    },
    "PruneUnits": removes_units,
    "Factorize": puts_two_for_one,
    "search_settings, try_setting": searches,
    "compress": partial(
        takes_only_its_own,
        function=lambda case: compression.compress(
            case.model, None, whole_data(case), [compression.FineTune(1)], progress=False
        ),
    ),
    "search_recipe": partial(
        takes_only_its_own,
        function=lambda case: compression.search_recipe(
            case.model, None, whole_data(case), runs=1, minutes=1, most_lost=100, progress=False
        ),
    ),
    # training
    "train": trains,
    "train_live": trains_live,
    "distil": distils,
    "pretrain": pretrains,
    "with_answers": answers_once,
    "train_on_hints": trains_on_hints,
    "Hinted": gives_hints,
    "distil_features, similarity": partial(distils_features, kind="similarity"),
    "distil_features, hint": partial(distils_features, kind="hint"),
    "layer_outputs": reads_features,
    # exercises
    "is_anything_pruned": finds_what_is_pruned,
    "do_zeros_stay": finds_zeros_that_come_back,
    "is_hard_smaller": finds_what_is_hard_pruned,
    "are_weights_rounded": finds_what_is_rounded,
    "is_the_student_smaller": compares_sizes,
    "is_the_teacher_frozen": finds_a_frozen_teacher,
    "does_it_need_no_labels": finds_labels,
}
SLOW = {  # some look for the best grid of every layer, and panels take a second each
    "bit_scan": scans_bits,
    "Quantize": partial(runs_stage, stage=compression.Quantize(4, 0)),
    "Grid": partial(runs_stage, stage=compression.Grid(4, 0)),
    "scorecard": fills_a_scorecard,
    "export_onnx": partial(exports, export=deployment.export_onnx, run=deployment.OnnxModel, ending=".onnx"),
    "export_openvino": partial(exports, export=deployment.export_openvino, run=deployment.OpenvinoModel, ending=".xml"),
    "search_architecture, search_architecture_live": teaches_small_networks,
    "exported_program": hands_over,
    "export_page": exports_a_page,
    "export_c": exports_c,
    "serve": serves,
    "PruningPanel": partial(shows, panel=panels.PruningPanel),
    "StructuredPruningPanel": partial(shows, panel=panels.StructuredPruningPanel),
    "QuantizationPanel": partial(shows, panel=panels.QuantizationPanel),
    "LeastSquaresPanel": shows_least_squares,
    "LowRankPanel": shows_low_rank,
    "DrawingPanel": shows_answers_to_drawings,
    "DistillationPanel": partial(shows, panel=panels.DistillationPanel),
    "RecipePanel": partial(
        takes_only_its_own, function=lambda case: panels.RecipePanel(case.model, case.build(1), whole_data(case))
    ),
}
