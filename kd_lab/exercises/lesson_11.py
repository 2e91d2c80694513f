"""The checks of lesson 11, deployment."""

import json
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from kd_lab.exercises.judging import exercise, expect_number, expect_numbers, expect_tensor, wrong_if, wrong_if_like

JSON_LENGTH = "Inference-Header-Content-Length"


NEAR_A_HALF = (2**27 - 1, 2**27 + 1, 0), (118_441_921, 152_094_785, 1)  # the products are 2**54 - 1 and 2**54 + 1


@exercise(
    "11.1",
    "Dividing by 2**shift is a shift to the right. Which way does a shift alone round?",
    "Add half of 2**shift before you shift, multiply in int64, and keep to int8's range before you change the dtype.",
    "`((sums.long() * multiplier + (1 << (shift - 1))) >> shift).clamp(-128, 127).to(torch.int8)`",
)
def requantize(answer: Any, draw: Generator) -> None:
    """`my_requantize(sums, multiplier, shift)` is sums · multiplier / 2^shift, rounded and saturated, in int8."""
    for shift in (36, 37):
        _check_requantized(answer, shift, draw)
    for one, multiplier, right in NEAR_A_HALF:
        given = int(answer(torch.tensor([[one]], dtype=torch.int32), multiplier, 55))
        said = f"{one * multiplier:,} / 2**55 became {given} where {right} is right: a float has rounded it before"
        wrong_if(given != right, said, "A product has up to 62 bits, float64 only 53. Multiply, add and shift int64.")


def _check_requantized(answer: Any, shift: int, draw: Generator) -> None:
    multiplier = int(torch.randint(2**30, 2**31 - 1, (), generator=draw))
    sums = torch.randint(-20_000, 20_000, (6, 50), generator=draw, dtype=torch.int32)
    product = sums.long() * multiplier
    exact = product.double() / 2**shift
    inside = (exact.frac().abs() - 0.5).abs() > 1e-3  # a half may go either way
    sums, product, exact = (torch.where(inside, each, 0) for each in (sums, product, exact))
    given = expect_tensor(answer(sums, multiplier, shift), sums.shape, "One number for each sum, in its place.")
    expected = exact.round().clamp(-128, 127)
    if torch.equal(given.double(), expected):
        wrong_if(given.dtype != torch.int8, f"the result is {given.dtype}, not int8", "`.to(torch.int8)` at the end.")
        return
    low = "A shift alone rounds down. Add half of 2**shift, `1 << (shift - 1)`, to the product first."
    wraps = (
        "A number above 127 doesn't fit: int8 begins again at -128. Use `.clamp(-128, 127)` before `.to(torch.int8)`."
    )
    overflow = "A product has up to 62 bits: multiply `sums.long()`."
    small = (sums * multiplier + (1 << (shift - 1))) >> shift
    mistakes = {
        "it rounds down": ((product >> shift).clamp(-128, 127), low),
        "it cuts off what is behind the point": (exact.trunc().clamp(-128, 127), "Round to the *nearest* number."),
        "large numbers turn into small ones": (exact.round().long().to(torch.int8), wraps),
        "large numbers stay beyond int8": (exact.round(), "int8 reaches from -128 to 127: `.clamp(-128, 127)`."),
        "the products don't fit into int32": (small.clamp(-128, 127), overflow),
        "negative numbers become 0": (expected.clamp(min=0), "int8 has negative numbers, too: from -128."),
    }
    wrong_if_like(given, mistakes)
    place = (given.double() != expected).flatten().nonzero()[0].item()
    said = f"{sums.flatten()[place]} became {given.flatten()[place]} where {expected.flatten()[place]:.0f} is right"
    wrong_if(True, said, "In this order: multiply, add half, shift, clamp, int8.")


@exercise(
    "11.2",
    "An answer is the place of the largest logit in a row. When are two answers others?",
    "`here.argmax(dim=1) != there.argmax(dim=1)` is True where they are. The second number has no sign.",
    "`(…).sum().item(), (here - there).abs().max().item()`",
)
def parity(answer: Any, draw: Generator) -> None:
    """`my_parity(here, there)` is the number of other answers and the largest difference of two logits."""
    for sign in (9, -9):  # so the largest difference has a minus once, whichever is taken from the other
        here = 3 * torch.randn(80, 10, generator=draw)
        there = here + torch.randn(80, 10, generator=draw)
        there[5, 3] += sign
        _check_parity(answer(here, there), here, there)


def _check_parity(given: Any, here: Tensor, there: Tensor) -> None:
    pair = "Return two numbers: `return others, largest`."
    count, largest = expect_numbers(given, 2, "(-inf, inf)", pair)
    others, apart = (here.argmax(1) != there.argmax(1)).sum().item(), (here - there).abs().max().item()
    said = f"{count:g} answers are others where {others} are"
    logits = (here != there).any(dim=1).sum().item()
    wrong_if(abs(count - apart) < 1e-4, said, "The count comes first, then the difference.")
    wrong_if(count == 80 - others, said, "This counts answers that are the same.")
    wrong_if(0 < count < 1, said, "A count is asked for, not a fraction: `.sum()`, not `.mean()`.")
    wrong_if(
        count in (logits, (here != there).sum().item()), said, "Logits always differ a little. Compare the answers."
    )
    columns = (here.argmax(0) != there.argmax(0)).sum().item()
    wrong_if(count == columns != others, said, "`argmax(dim=1)`: each row is an image, and its answer a column.")
    wrong_if(count != others, said, "Count the images whose `argmax(dim=1)` differs.")
    said = f"the largest difference is {largest:.3g} where {apart:.3g} is right"
    signed = [(here - there).max().item(), (there - here).max().item()]
    low = [(here - there).min().item(), (there - here).min().item()]
    right = abs(largest - apart) < 1e-4
    wrong_if(
        not right and min(abs(largest - each) for each in signed + low) < 1e-4, said, "Differences have signs: abs."
    )
    wrong_if(not right, said, "Of all N · classes differences, the largest size: `.abs().max()`.")


@exercise(
    "11.3",
    "What in the lesson's request depends on how many images there are?",
    "The shape is that of all images, and the data are the numbers of all images, one after the other.",
    '`{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.flatten().tolist()}`',
)
def request(answer: Any, draw: Generator) -> None:
    """`my_request(images)` is the body of one request for all images, in the Open Inference Protocol."""
    images = torch.rand(3, 1, 28, 28, generator=draw)
    given = answer(images)
    whole = 'Return a dict: `{"inputs": [tensor]}`, where `tensor` is the dict with name, shape, datatype and data.'
    wrong_if(isinstance(given, (str, bytes)), "this is text", f"`session.post(json=…)` writes the JSON. {whole}")
    try:
        given = json.loads(json.dumps(given))
    except TypeError as error:
        numbers = "Lists of plain numbers: `list(images.shape)`, `images.flatten().tolist()`."
        wrong_if(True, f"JSON can't write it: {error}", numbers)
    tensor = _tensor(given, images, whole)
    data = tensor.get("data")
    flat = torch.tensor(_flat(data), dtype=torch.float32)
    wrong_if(len(flat) == 784, "the data are those of one image", "All images must be in: `images.flatten().tolist()`.")
    wrong_if(len(flat) != images.numel(), f"there are {len(flat)} numbers, not {images.numel()}", "784 for each image.")
    wrong_if(not torch.allclose(flat, images.flatten(), atol=1e-6), "the pixels are others", "As they are, row by row.")


def _flat(data: Any) -> list[float]:
    """Return the numbers of a list, nested or not."""
    if isinstance(data, list):
        return [number for each in data for number in _flat(each)]
    return [expect_number(data, "(-inf, inf)", '"data" is the list of all numbers.')]


def _tensor(body: Any, images: Tensor, whole: str) -> dict:
    """Return the one input of a request; raise Wrong unless its name, datatype and shape fit."""
    inputs: Any = body.get("inputs") if isinstance(body, dict) else None
    wrong_if(not isinstance(inputs, list), 'there is no list of "inputs"', whole)
    several = "One input holds all images: its shape begins with their number."
    wrong_if(len(inputs) != 1, f"there are {len(inputs)} inputs", several)
    tensor = inputs[0]
    wrong_if(not isinstance(tensor, dict) or tensor.get("name") != "images", 'its name is not "images"', whole)
    said = f"the datatype is {tensor.get('datatype')!r}"
    wrong_if(tensor.get("datatype") != "FP32", said, 'The numbers are float32, which the protocol calls "FP32".')
    shape, right = tensor.get("shape"), list(images.shape)
    one = f"{len(images)} images came, so the shape is {right}."
    wrong_if(shape != right, f"the shape is {shape}", one)
    return tensor


@exercise(
    "11.4",
    "First the bytes of the pixels, then the JSON that says how many they are, then its own length.",
    '`images.numpy().astype("<f4").tobytes()`; the JSON has "parameters" and no "data"; `json.dumps(…).encode()`.',
    f'`return text + numbers, {{"{JSON_LENGTH}": str(len(text))}}`',
)
def binary(answer: Any, draw: Generator) -> None:
    """`my_binary(images)` is the body and the headers of a request with binary numbers."""
    images = torch.rand(2, 1, 28, 28, generator=draw)
    given = answer(images)
    both = "Return the body (bytes) and the headers (a dict): `return body, headers`."
    pair = isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[1], dict)
    wrong_if(not pair or not isinstance(given[0], (bytes, bytearray)), "these are not bytes and a dict", both)
    body, headers = bytes(given[0]), {str(name).lower(): value for name, value in given[1].items()}
    length, size = headers.get(JSON_LENGTH.lower(), ""), 4 * images.numel()
    wrong_if(length == "", f"there is no header {JSON_LENGTH}", "It says where the JSON ends.")
    wrong_if(not isinstance(length, str), f"the header is {length!r}", "A header is text: `str(len(text))`.")
    end = int(length) if length.isdecimal() else -1
    wrong_if(
        end == len(body), "the header counts the whole body", "It counts the JSON alone, not the pixels behind it."
    )
    wrong_if(end == size, "the header counts the pixels", "It counts the bytes of the JSON.")
    text, numbers = body[:end], body[end:]
    try:
        asked = json.loads(text)
    except ValueError:
        wrong_if(True, f"the first {length} bytes are no JSON", "Text first, numbers behind it, and nothing between.")
    tensor = _tensor(asked, images, 'The JSON is `{"inputs": [tensor]}`, as in 11.3, without the data.')
    wrong_if("data" in tensor, 'there is "data" in the JSON', "The numbers come behind the JSON, and only there.")
    double = "Pixels must be float32, 4 bytes each: `.astype('<f4')`. Nothing stands between them and the JSON."
    said = f"there are {len(numbers)} bytes behind the JSON, and {size} are right"
    wrong_if(len(numbers) != size, said, double)
    parameters = tensor.get("parameters")
    told = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    told_so = '`"parameters": {"binary_data_size": B}`, B a number: the bytes of all images, not of one.'
    wrong_if(told != size, f'"binary_data_size" is {told!r}, and {size} is right', told_so)
    pixels = torch.from_numpy(np.frombuffer(numbers, "<f4").copy())
    wrong_if(not torch.equal(pixels, images.flatten()), "the pixels are others", "Float32, little-endian, row by row.")


DENSE, PRUNED = (285_000, 305_000), (55_000, 60_000)  # bytes; the coder gives the same ones on any processor


@exercise(
    "11.5",
    '`export_page(network, folder / "dense.html")` writes a page. Where do files say how large they are?',
    "`path.stat().st_size`, of either page.",
    '`my_bytes = {"dense": …, "pruned": …}`, both numbers in bytes; the smaller one is near a fifth of the other.',
)
def pages(answer: Any, draw: Generator) -> None:
    """`my_bytes` is a dict: the bytes of the page of mlp128, and of mlp128 pruned to a tenth."""
    right = isinstance(answer, dict) and {*answer} == {"dense", "pruned"}
    wrong_if(not right, "the dict has other keys", 'Give {"dense": …, "pruned": …}.')
    dense, pruned = (expect_number(answer[key], "[0, inf)", "Bytes, as plain numbers.") for key in ("dense", "pruned"))
    if DENSE[0] < dense < DENSE[1] and PRUNED[0] < pruned < PRUNED[1]:
        return
    said = f"dense {dense:,.0f}, pruned {pruned:,.0f}"
    wrong_if(dense < 1000, said, "These are kilobytes. Give bytes.")
    wrong_if(dense == pruned, said, "Are both of one network? `prune` returns a new one.")
    wrong_if(dense < pruned, said, "The two are swapped.")
    both = "This is as large as both networks together: one page for each."
    wrong_if(max(dense, pruned) > DENSE[1] and dense < 360_000, said, both)
    wrong_if(dense > 360_000, said, "These are other files than the pages: `.html`, written by `export_page`.")
    tenth = "The dense page is right. Is the other one pruned at a sparsity of 0.9? Measure its file, don't compute it."
    wrong_if(DENSE[0] < dense < DENSE[1], said, tenth)
    wrong_if(True, said, 'Is the network `load_trained("mlp128")`?')
