"""Wrong answers to the exercises of lesson 11."""

import json
from typing import Any

import torch


def wrong_11_1() -> dict[str, Any]:
    """From sums to int8."""

    def rounded(sums, multiplier, shift):
        return (sums.long() * multiplier + (1 << (shift - 1))) >> shift

    def down(sums, multiplier, shift):
        return ((sums.long() * multiplier) >> shift).clamp(-128, 127).to(torch.int8)

    def cut(sums, multiplier, shift):
        return (sums.double() * multiplier / 2**shift).clamp(-128, 127).to(torch.int8)

    def in_32_bits(sums, multiplier, shift):
        return ((sums * multiplier + (1 << (shift - 1))) >> shift).clamp(-128, 127).to(torch.int8)

    return {
        "it rounds down": down,
        "behind the point": cut,
        "begins again": lambda *given: rounded(*given).to(torch.int8),
        "beyond int8": rounded,
        "fit into int32": in_32_bits,
        "negative numbers, too": lambda *given: rounded(*given).clamp(0, 127).to(torch.int8),
        "not int8": lambda *given: rounded(*given).clamp(-128, 127),
        "a float has rounded": lambda s, m, shift: (s.double() * m / 2**shift).round().clamp(-128, 127).char(),
        "0 is right: a float": lambda s, m, shift: (s * (m / 2**shift) + 0.5).floor().clamp(-128, 127).char(),
        "In this order": lambda sums, multiplier, shift: rounded(sums, multiplier, shift - 1).clamp(-128, 127),
    }


def right_11_1() -> list[Any]:
    """From sums to int8: halves away from 0, and number by number."""

    def away(sums, multiplier, shift):
        sizes = (sums.long().abs() * multiplier + (1 << (shift - 1))) >> shift
        return (sizes * sums.sign()).clamp(-128, 127).char()

    def one_by_one(sums, multiplier, shift):
        rows = [[(each * multiplier + (1 << (shift - 1))) >> shift for each in row] for row in sums.tolist()]
        return torch.tensor(rows).clamp(-128, 127).to(torch.int8)

    return [away, one_by_one]


def right_11_2() -> list[Any]:
    """Does it answer the same: two numbers in one tensor."""
    return [lambda a, b: torch.stack([(a.argmax(1) != b.argmax(1)).sum().float(), (a - b).abs().max()])]


def wrong_11_2() -> dict[str, Any]:
    """Does it answer the same."""

    def others(here, there):
        return (here.argmax(1) != there.argmax(1)).sum().item()

    def apart(here, there):
        return (here - there).abs().max().item()

    return {
        "2 numbers": others,
        "that are the same": lambda a, b: ((a.argmax(1) == b.argmax(1)).sum(), apart(a, b)),
        "not a fraction": lambda a, b: ((a.argmax(1) != b.argmax(1)).float().mean(), apart(a, b)),
        "Logits always differ": lambda a, b: ((a != b).any(dim=1).sum(), apart(a, b)),
        "each row is an image": lambda a, b: ((a.argmax(0) != b.argmax(0)).sum(), apart(a, b)),
        "have signs": lambda a, b: (others(a, b), (a - b).max()),
        "The count comes first": lambda a, b: (apart(a, b), others(a, b)),
        "the largest size": lambda a, b: (others(a, b), (a - b).abs().mean()),
    }


def _tensor(images, **changed):
    tensor = {"name": "images", "shape": [*images.shape], "datatype": "FP32", "data": images.flatten().tolist()}
    return tensor | changed


def wrong_11_3() -> dict[str, Any]:
    """Many images in one request."""

    def body(images, **changed):
        return {"inputs": [_tensor(images, **changed)]}

    return {
        "where `tensor` is the dict": lambda images: _tensor(images),
        "this is text": lambda images: json.dumps(body(images)),
        "the shape is [1, 1, 28, 28]": lambda images: body(images, shape=[1, 1, 28, 28]),
        "JSON can't write it": lambda images: body(images, data=images),
        "those of one image": lambda images: body(images, data=images[0].flatten().tolist()),
        'calls "FP32"': lambda images: body(images, datatype="float32"),
        "One input holds all": lambda images: {"inputs": [_tensor(each[None]) for each in images]},
        "pixels are others": lambda images: body(images, data=(255 * images).int().flatten().tolist()),
    }


def wrong_11_4() -> dict[str, Any]:
    """Numbers as they are."""

    def binary(dtype=torch.float32, size=None, length=lambda text, body: str(len(text)), between=b"", **changed):
        def my_binary(images):
            numbers = images.to(dtype).numpy().tobytes()
            tensor = _tensor(images, parameters={"binary_data_size": size or len(numbers)}, **changed)
            if "data" not in changed:
                del tensor["data"]
            text = json.dumps({"inputs": [tensor]}).encode()
            body = text + between + numbers
            return body, {"Inference-Header-Content-Length": length(text, body)}

        return my_binary

    return {
        "not bytes and a dict": lambda images: binary()(images)[0],
        "there is no header": lambda images: (binary()(images)[0], {"Content-Length": "130"}),
        "A header is text": binary(length=lambda text, body: len(text)),
        "the whole body": binary(length=lambda text, body: str(len(body))),
        "counts the pixels": binary(length=lambda text, body: str(len(body) - len(text))),
        "only there": binary(data=[0.0]),
        "4 bytes each": binary(dtype=torch.float64),
        "not of one": binary(size=3136),
        "are no JSON": lambda images: (binary()(images)[0][::-1], binary()(images)[1]),
    }


def wrong_11_5() -> dict[str, Any]:
    """A pruned network's page."""
    return {
        "other keys": [294_655, 57_591],
        "These are kilobytes": {"dense": 295, "pruned": 58},
        "Are both of one network": {"dense": 294_655, "pruned": 294_655},
        "swapped": {"dense": 57_591, "pruned": 294_655},
        "both networks together": {"dense": 329_677, "pruned": 57_591},
        "other files": {"dense": 408_000, "pruned": 59_000},
        "don't compute it": {"dense": 294_655, "pruned": 29_466},
        "mlp128": {"dense": 29_000, "pruned": 27_000},
    }
