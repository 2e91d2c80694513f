"""Choose each layer's bits by themselves: scan what every width costs, then spend one budget of bytes."""

from torch import Tensor, nn

from kd_lab.allocation import Scan, check_scan, check_scannable, choose_settings, scan_layers
from kd_lab.errors import ParameterError, check_whole_number
from kd_lab.quantization.weights import WEIGHT_BITS, quantize_weights


def bit_scan(model: nn.Module, data: tuple[Tensor, Tensor], bits: list[int]) -> Scan:
    """Return by how much the mean cross-entropy rises where one layer alone is quantized: {layer: {bits: rise}}.

    `data`, (images, labels), is from the validation part. The layer's grids are those of quantize_weights, symmetric,
    one for each output; the other layers are whole.
    """
    example = "a list of whole numbers, at least one, as in [2, 4, 8]"
    check_scannable(model, data, "bits", bits, example)
    if len(bits) == 0:
        raise ParameterError(f"'bits' must be {example}. Got {bits!r}.")
    for each in bits:
        check_whole_number("bits", each, WEIGHT_BITS)
    return scan_layers(model, data, bits, quantize_weights)


def choose_bits(scan: Scan, counts: dict[str, int], budget: int) -> dict[str, int]:
    """Return bits for each layer of the scan, so that its rises add up to as little as they can (choose_settings).

    `counts` are the weights of each layer, and `budget` is how many bytes their packed codes may take together.
    """
    check_whole_number("budget", budget, "[1, 1e12]")
    check_scan(scan, counts, "bits", "bit_scan")
    for rises in scan.values():
        for bits in rises:
            check_whole_number("bits in the scan", bits, WEIGHT_BITS)
    taken = {name: {bits: -(-counts[name] * bits // 8) for bits in rises} for name, rises in scan.items()}
    chosen = choose_settings(scan, taken, budget)
    if chosen is None:
        least = sum(min(sizes.values()) for sizes in taken.values())
        raise ParameterError(
            f"a budget of {budget} bytes is out of reach: with the fewest bits of "
            f"every layer in the scan the codes take {least}. Scan fewer bits, or allow more bytes."
        )
    return chosen
