"""Wrong answers to the exercises of lesson 12: snippets that are still wrong, or mended halfway."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def wrong_12_1() -> dict[str, Any]:
    """One threshold for all layers."""

    def sizes(weights):
        return torch.cat([weight.abs().flatten() for weight in weights])

    def of_each(weights, sparsity):
        return torch.stack([weight.abs().flatten().quantile(sparsity) for weight in weights])

    def masks(threshold, size=torch.abs):
        return lambda weights, sparsity: [size(weight) > threshold(weights, sparsity) for weight in weights]

    def last(weights, sparsity):
        return sizes(weights).sort().values[round(sparsity * len(sizes(weights))) - 1]

    def own(weights, sparsity):
        return [w.abs() > (w.abs().flatten().quantile(sparsity) if sparsity else -1) for w in weights]

    def signed(weights, sparsity):
        flat = torch.cat([weight.flatten() for weight in weights])
        return flat.sort().values[round(sparsity * len(flat)) - 1]

    def right(weights, sparsity):
        return last(weights, sparsity) if sparsity else -1

    def prunes(weights, sparsity):
        for weight in weights:
            weight *= weight.abs() > right(weights, sparsity)
        return [weight != 0 for weight in weights]

    return {
        "a tiny layer counts as much": masks(lambda w, s: of_each(w, s).mean()),
        "the same share of each layer": own,
        "is the *last* one": masks(last),
        "Turned round": lambda w, s: [~mask for mask in masks(right)(w, s)],
        "your function stops": masks(lambda w, s: torch.stack(w).abs().quantile(s)),
        "the sign doesn't count": masks(signed, size=lambda weight: weight),
        "a mask has only zeros": lambda w, s: [m * x for m, x in zip(masks(right)(w, s), w, strict=True)],
        "that share of *all* weights": lambda w, s: [x.abs() > sizes(w[:1]).quantile(s) for x in w],
        "One mask for each weight": lambda w, s: torch.cat([mask.flatten() for mask in masks(right)(w, s)]),
        "leave the weights as they are": prunes,
    }


def wrong_12_2() -> dict[str, Any]:
    """Zeros that come back."""

    def as_before(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        velocity = momentum * velocity + gradient * mask
        return weight - rate * velocity, velocity

    def no_momentum(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        return (weight - rate * gradient) * mask, velocity

    def only_weight(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        return (weight - rate * (momentum * velocity + gradient)) * mask

    def forgets(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        return (weight - rate * (momentum * velocity + gradient)) * mask, velocity

    def turned(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        velocity = momentum * velocity + gradient
        return (weight - rate * velocity) * (1 - mask), velocity

    def uphill(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        velocity = momentum * velocity + gradient
        return (weight + rate * velocity) * mask, velocity

    def by_weight(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        velocity = (momentum * velocity + gradient) * (weight != 0)
        return weight - rate * velocity, velocity

    def one_rate(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        velocity = (0.9 * velocity + gradient) * mask
        return weight - 0.1 * velocity, velocity

    def nothing_left(weight, gradient, velocity, mask, rate=0.1, momentum=0.9):
        return 0 * weight, velocity

    return {
        "The velocity moves them": as_before,
        "Keep the velocity": no_momentum,
        "Return the weight and the velocity": only_weight,
        "that of the code in the question": forgets,
        "1 keeps a weight": turned,
        "nothing was wrong": uphill,
        "at a rate of 0.2 and a momentum of 0.5": one_rate,
        "`mask` says which": by_weight,
        "all weights are zero": nothing_left,
    }


def wrong_12_3() -> dict[str, Any]:
    """Rounded, and nothing changes."""

    def rounded(to, copied=copy.deepcopy, which=lambda model: model.parameters()):
        def my_rounded(model, step):
            model = copied(model)
            for parameter in which(model):
                parameter.data = to(parameter.data, step)
            return model

        return my_rounded

    def right(x, step):
        return torch.round(x / step) * step

    def rebinds(model, step):
        model = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter = right(parameter, step)
        return model

    return {
        "A new name": rebinds,
        "copy.deepcopy(model)": rounded(right, copied=lambda model: model),
        "multiply by the step again": rounded(lambda x, step: torch.round(x / step)),
        "rounded down": rounded(lambda x, step: torch.floor(x / step) * step),
        "rounded to 0": rounded(lambda x, step: (x / step).int() * step),
        "whole numbers: divide": rounded(lambda x, step: torch.round(x)),
        "weights and biases": rounded(right, which=lambda model: [layer.weight for layer in model[::2]]),
        "not its parameters": lambda model, step: [right(each, step) for each in model.parameters()],
        "no multiples": rounded(lambda x, step: right(x, 0.25)),
        "Only the numbers change": lambda model, step: rounded(right)(nn.Sequential(*model[::2]), step),
        "can't be trained": lambda model, step: rounded(right)(model, step).requires_grad_(False),
    }


def wrong_12_4() -> dict[str, Any]:
    """A soft loss with three mistakes."""

    def loss(power=2, mean=lambda each: each.sum(1).mean(), turned=False, log=lambda x: x.log_softmax(1)):
        def my_soft_loss(student, teacher, temperature):
            student, teacher = (teacher, student) if turned else (student, teacher)
            target = (teacher / temperature).softmax(1)
            return temperature**power * mean(F.kl_div(log(student / temperature), target, reduction="none"))

        return my_soft_loss

    return {
        "all three mistakes": loss(0, torch.mean, True),
        "other way round, KL": loss(turned=True),
        "other way round, and has no T²": loss(0, turned=True),
        "other way round, and divides": loss(2, torch.mean, True),
        "T² is missing": loss(0),
        "the mean over classes": loss(2, torch.mean),
        "two mistakes are left": loss(0, torch.mean),
        "the sum over all images": loss(2, torch.sum),
        "there is T, not T²": loss(1),
        "raw logits": loss(log=lambda x: x),
        "is log 0": loss(log=lambda x: x.softmax(1).log()),
        "log_softmax` needs no small": loss(log=lambda x: (x.softmax(1) + 1e-8).log()),
        "One number": loss(mean=lambda each: each),
    }


def wrong_12_5() -> dict[str, Any]:
    """A teacher in two minds."""

    def evaluated(teacher, images):
        return teacher.eval()(images)

    def trained_again(teacher, images):
        with torch.no_grad():
            given = teacher.eval()(images)
        teacher.train()
        return given

    @torch.no_grad()
    def noisy(teacher, images):
        return teacher(images)

    def frozen(teacher, images):
        modes = {module: module.training for module in teacher.modules()}
        given = teacher.eval().requires_grad_(False)(images)
        for module, mode in modes.items():
            module.training = mode
        return given

    def without_dropout(teacher, images):
        modes = {module: module.training for module in teacher.modules()}
        given = evaluated(teacher, images)
        for module, mode in modes.items():
            module.training = mode
        return given

    def only_dropout(teacher, images):
        for module in teacher.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        return teacher(images).detach()

    def switched_off(teacher, images):
        torch.set_grad_enabled(False)
        return copy.deepcopy(teacher).eval()(images)

    def no_dropout(teacher, images):
        teacher[2].p = 0.0
        return copy.deepcopy(teacher).eval()(images).detach()

    return {
        "Dropout throws": noisy,
        "inside the graph": without_dropout,
        "the teacher is in evaluation mode": lambda teacher, images: evaluated(teacher, images).detach(),
        "all layers are in training mode": trained_again,
        "can't be trained": frozen,
        "modes are others": only_dropout,
        "switched off for all": switched_off,
        "dropout stays in it": no_dropout,
    }
