"""Tell which weights are tied: one parameter that several layers use, as an autoencoder's two halves may."""

from torch.nn.utils import parametrize

from kd_lab.networks.layers import Weight


def distinct(present: dict[str, Weight]) -> dict[str, Weight]:
    """Return these weights, by the layer's name, but of tied ones only the first: each parameter counts once."""
    first = {_parameters(weight): name for name, weight in reversed(present.items())}
    return {name: weight for name, weight in present.items() if first[_parameters(weight)] == name}


def tied(present: dict[str, Weight], name: str) -> list[str]:
    """Return the names of all weights that are one parameter with this one, itself among them."""
    return [other for other, weight in present.items() if _parameters(weight) == _parameters(present[name])]


def _parameters(weight: Weight) -> tuple[int, ...]:
    """Return what tells a weight's parameters from others; with parametrizations they are the originals."""
    if parametrize.is_parametrized(*weight):
        return tuple(map(id, weight.module.parametrizations[weight.name].parameters(recurse=False)))
    return (id(weight.value),)
