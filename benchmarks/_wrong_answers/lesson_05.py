"""Wrong answers to the exercises of lesson 05."""

from typing import Any

import torch
import torch.nn.functional as F


def wrong_05_1() -> dict[str, Any]:
    """The whole loss."""

    def soft(s, t, temperature):
        log_q, log_p = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def loss(kl, factor=lambda temperature: temperature**2):
        return lambda s, t, labels, temperature, alpha: (
            alpha * F.cross_entropy(s, labels) + (1 - alpha) * factor(temperature) * kl(s, t, temperature)
        )

    def kl_div(first, target, reduction="batchmean"):
        return lambda s, t, temperature: F.kl_div(first(s / temperature), target(t / temperature), reduction=reduction)

    def probabilities(logits):
        return logits.softmax(dim=1)

    def unsafe(logits):
        return logits.softmax(dim=1).log()

    def logarithms(logits):
        return logits.log_softmax(dim=1)

    def swapped(s, t, labels, temperature, alpha):
        return loss(soft)(s, t, labels, temperature, 1 - alpha)

    def both(s, t, labels, temperature, alpha):
        return temperature**2 * loss(soft, lambda _: 1)(s, t, labels, temperature, alpha)

    def softened_labels(s, t, labels, temperature, alpha):
        hard = F.cross_entropy(s / temperature, labels)
        return alpha * hard + (1 - alpha) * temperature**2 * soft(s, t, temperature)

    return {
        "T² is missing": loss(soft, lambda _: 1),
        "T stands where": loss(soft, lambda temperature: temperature),
        "before both parts": both,
        "alpha is the wrong way": swapped,
        "KL is the wrong way": loss(lambda s, t, temperature: soft(t, s, temperature)),
        "the student isn't softened": loss(lambda s, t, temperature: soft(temperature * s, t, temperature)),
        "the teacher isn't softened": loss(lambda s, t, temperature: soft(s, temperature * t, temperature)),
        "labels' part is softened": softened_labels,
        "divided by the classes": loss(lambda s, t, temperature: soft(s, t, temperature) / s.shape[1]),
        "a sum over the images": loss(kl_div(logarithms, probabilities, "sum")),
        "A row is an image": loss(lambda s, t, temperature: soft(s.T, t.T, temperature) * s.shape[1] / len(s)),
        "raw logits": loss(kl_div(lambda logits: logits, probabilities)),
        "probabilities first": loss(kl_div(probabilities, probabilities)),
        "lie far apart": loss(kl_div(unsafe, probabilities)),
        "cross-entropy with the soft targets": loss(
            lambda s, t, temperature: F.cross_entropy(s / temperature, probabilities(t / temperature))
        ),
        "no gradient": lambda *given: loss(soft)(*given).item(),
    }


def wrong_05_2() -> dict[str, Any]:
    """Ask the teacher."""

    def training(teacher, images):
        with torch.no_grad():
            return teacher(images)

    def left_in_evaluation(teacher, images):
        teacher.eval()
        with torch.no_grad():
            return teacher(images)

    def left_in_training(teacher, images):
        logits = left_in_evaluation(teacher, images)
        teacher.train()
        return logits

    def attached(teacher, images):
        was = teacher.training
        logits = teacher.eval()(images)
        teacher.train(was)
        return logits

    def for_good(teacher, images):
        was = teacher.training
        logits = teacher.eval().requires_grad_(False)(images)
        teacher.train(was)
        return logits

    def for_everyone(teacher, images):
        torch.set_grad_enabled(False)
        return attached(teacher, images)

    return {
        "can't be trained any more": for_good,
        "turned off for whoever calls": for_everyone,
        "answers in training mode": training,
        "and is in evaluation mode now": left_in_evaluation,
        "and is in training mode now": left_in_training,
        "have gradients": attached,
        "these are probabilities": lambda teacher, images: left_in_evaluation(teacher, images).softmax(dim=1),
        "one row for each image": lambda teacher, images: left_in_evaluation(teacher, images).argmax(dim=1),
    }


def wrong_05_3() -> dict[str, Any]:
    """The smallest student that is as good."""
    return {
        "Go on downwards": 25,
        "the bad end": 15,
        "That is worse": 10,
        "none of the widths": 15910,
        "A width": "20 units",
    }


def wrong_05_4() -> dict[str, Any]:
    """Is the best teacher the best."""
    right = {"mlp128": (91.2, 2.26), "lenet300": (90.6, 3.77), "cnn": (89.7, 6.28)}

    def changed(reads=1.0, apart=1.0, plus=0.0):
        return {name: (reads * percent + plus, apart * far) for name, (percent, far) in right.items()}

    return {
        "times 100": changed(reads=0.01),
        "T² in it": changed(apart=1 / 64),
        "near the teachers": {"mlp128": (98.2, 2.26), "lenet300": (98.4, 3.77), "cnn": (99.3, 6.28)},
        "the same students": dict.fromkeys(right, (90.6, 3.77)),
        "are two names swapped": right | {"lenet300": right["cnn"], "cnn": right["lenet300"]},
        "2 numbers": {name: pair[:1] for name, pair in right.items()},
        "a dict is asked for": "mlp128",
        "the mean of five": changed(plus=1.7),
    }


def wrong_05_5() -> dict[str, Any]:
    """Without T²."""
    return {
        "fractions": {"with": 0.906, "without": 0.894, "labels": 0.891},
        "changes nothing": {"with": 90.6, "without": 90.6, "labels": 89.1},
        "only T² goes": {"with": 90.6, "without": 89.12, "labels": 89.12},
        "the two swapped": {"with": 89.4, "without": 90.6, "labels": 89.1},
        "alpha = 0.5 (1 for labels)": {"with": 92.1, "without": 90.0, "labels": 89.9},
        "a dict is asked for": 1.2,
        "divide it, and nothing else": {"with": 90.6, "without": 90.3, "labels": 89.1},
    }
