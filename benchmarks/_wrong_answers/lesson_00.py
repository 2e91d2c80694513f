"""Wrong answers to the exercises of lesson 00."""

from typing import Any


def wrong_00_1() -> dict[str, Any]:
    """The cost of a convolution."""

    def weights(inputs, outputs, kernel):
        return inputs * outputs * kernel**2

    return {
        "The biases are missing": lambda i, o, k, s: (weights(i, o, k), weights(i, o, k) * s**2),
        "a bias of its own": lambda i, o, k, s: (weights(i, o, k) + 1, weights(i, o, k) * s**2),
        "output channel has a bias": lambda i, o, k, s: (weights(i, o, k) + i, weights(i, o, k) * s**2),
        "reads *all* input channels": lambda i, o, k, s: (o * k**2 + o, o * k**2 * s**2),
        "kernel × kernel, not kernel": lambda i, o, k, s: (i * o * k + o, i * o * k * s**2),
        "never multiplied": lambda i, o, k, s: (weights(i, o, k) + o, (weights(i, o, k) + o) * s**2),
        "not once": lambda i, o, k, s: (weights(i, o, k) + o, weights(i, o, k)),
        "not side": lambda i, o, k, s: (weights(i, o, k) + o, weights(i, o, k) * s),
        "Turn the two round": lambda i, o, k, s: (weights(i, o, k) * s**2, weights(i, o, k) + o),
        "Return two numbers": lambda i, o, k, s: weights(i, o, k) + o,
    }


def wrong_00_2() -> dict[str, Any]:
    """Gained and lost."""

    def counts(new, old, labels):
        new_right, old_right = (logits.argmax(1) == labels for logits in (new, old))
        return (new_right & ~old_right).sum(), (old_right & ~new_right).sum()

    def other_answers(new, old, labels):
        different = (new.argmax(1) != old.argmax(1)).sum()
        return different, different

    def in_all(new, old, labels):
        return [(logits.argmax(1) == labels).sum() for logits in (new, old)]

    return {
        "turn them round": lambda new, old, labels: counts(new, old, labels)[::-1],
        "not fractions": lambda new, old, labels: [each / len(labels) for each in counts(new, old, labels)],
        "These are all that each reads": in_all,
        "compare each answer with its label": other_answers,
        "Return two counts": lambda new, old, labels: counts(new, old, labels)[0] - counts(new, old, labels)[1],
        "stops with": lambda new, old, labels: counts(new.argmax(1), old.argmax(1), labels),
    }


def wrong_00_3() -> dict[str, Any]:
    """Images for a narrow interval."""
    return {
        "`interval` gives fractions": 100,
        "to either side": 9600,
        "more images": 32000,
        "in smaller steps": 64000,
        "a thousandth": 3_800_000,
        "one number": "38,000",
    }


def wrong_00_4() -> dict[str, Any]:
    """What the kit refuses."""
    right = {"text": "refused", "50": "refused", "10": 18.8}
    return {
        "whatever it says": right | {"text": "ParameterError"},
        "10 is not refused": right | {"10": "refused"},
        "in quotes is text": right | {"text": 84.0},
        "rates end at 10": right | {"50": 9.8},
        "times 100": right | {"10": 0.188},
        "far too good": right | {"10": 84.02},
        "Return {": ["refused", "refused", 18.8],
        "the network that came back": right | {"10": "ruined"},
    }


def wrong_00_5() -> dict[str, Any]:
    """The same recipe from ten seeds."""
    points = [1.08, 0.7, 1.02, 1.38, 0.58, 0.32, 1.28, 0.5, 1.4]
    return {
        "Times 100": {"points": [each / 100 for each in points], "clear": 6},
        "comes second": {"points": [-each for each in points], "clear": 6},
        "same seed gives the same": {"points": [0.0] * 9, "clear": 0},
        "nothing else changed": {"points": [each + 1.2 for each in points], "clear": 9},
        "all validation images": {"points": [0.9, 0.8, 0.9, 1, 0.9, 0.8, 0.9, 0.9, 1], "clear": 6},
        "*do* contain zero": {"points": points, "clear": 3},
        "both ends are above it": {"points": points, "clear": 9},
        "Return {": {"points": [0.0, *points], "clear": 6},
    }
