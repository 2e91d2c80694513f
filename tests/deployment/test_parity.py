"""A deployed network that answers otherwise than torch is refused, or named with its images where it only rounds."""

import pytest
import torch
from torch import nn

from kd_lab.deployment.parity import check_parity, real_images
from kd_lab.deployment.runtime import RuntimeModel
from kd_lab.errors import ParameterError
from kd_lab.networks.predictions import predict


class Changed(nn.Module):
    """Answer as a network does, but for what `change` makes of the logits of so many images."""

    def __init__(self, model, change, count=None):
        super().__init__()
        self.model, self.change, self.count = model, change, count

    def forward(self, x):
        logits = self.model(x)
        return self.change(logits) if self.count in (None, len(x)) else logits


def turned(*places):
    """Answer some images of each batch with the digit that was thought the least likely."""
    return lambda logits: torch.cat([-row[None] if place in places else row[None] for place, row in enumerate(logits)])


@pytest.mark.parametrize("rounds", ["", "same", "other"])
def test_the_same_answers_pass_without_a_word(rounds, student, recwarn):
    check_parity(student, student, None, "the runtime", rounds)
    check_parity(Changed(student, lambda logits: logits * (1 + 1e-6)), student, None, "the runtime", rounds)
    assert not recwarn.list


@pytest.mark.parametrize("count", [1, 3, 125, 5])
def test_other_logits_in_a_batch_of_any_size_are_refused(count, student):
    wrong = Changed(student, lambda logits: logits + 10, count)
    with pytest.raises(ParameterError, match=r"'model' must be one that the runtime computes alike\. In a batch of "):
        check_parity(wrong, student, None, "the runtime")


@pytest.mark.parametrize(
    "change", [lambda logits: logits.double(), lambda logits: logits[:, :9], lambda logits: logits * torch.nan]
)
@pytest.mark.parametrize("rounds", ["", "same"])
def test_another_shape_another_type_or_no_number_is_refused(change, rounds, student):
    with pytest.raises(ParameterError, match=r"computes alike"):
        check_parity(Changed(student, change), student, None, "the runtime", rounds)


def test_what_a_quantizer_changes_is_named_with_its_images(student):
    few = real_images(None, 125)
    with pytest.warns(UserWarning, match=r"^the runtime answers 2 of 125 images otherwise than torch: images 7, 90\.$"):
        check_parity(Changed(student, turned(7, 90), 125), student, few, "the runtime", "other")


def test_a_long_list_of_images_is_cut(student):
    few = real_images(None, 125)
    with pytest.warns(UserWarning, match=r"12 of 125 images .*: images 20, 21, .*, 29, …\.$"):
        check_parity(Changed(student, turned(*range(20, 32)), 125), student, few, "the runtime", "other")


def test_a_quantizer_that_changes_more_than_a_tenth_is_refused(student):
    with pytest.raises(ParameterError, match=r"computes alike\. In a batch of 125 "):
        check_parity(Changed(student, turned(*range(13)), 125), student, real_images(None, 125), "it", "other")


def test_without_images_real_digits_are_compared(mnist):
    assert torch.equal(real_images(None), mnist.validation.images[:1000])
    own = torch.rand(3, 2)
    assert torch.equal(real_images(own), own)


class Doubling(RuntimeModel):
    """A runtime that takes four rows of three numbers at a time and doubles them."""

    runtime, shape, dtype = "Doubler", [4, 3], torch.float32

    def answers(self, images):
        if (images < 0).any():
            raise ArithmeticError("too small")
        return 2 * images if images.shape[0] == 4 else images[:1]

    def said(self, error):
        return str(error)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_fixed_batch_is_filled_up_and_cut_again(count):
    rows = torch.rand(count, 3)
    assert torch.equal(predict(Doubling(), rows), 2 * rows)


@pytest.mark.parametrize("images", [torch.rand(2, 4), torch.rand(2, 3, 1), torch.rand(2, 3).double()])
def test_what_the_file_does_not_take_is_refused(images):
    with pytest.raises(ParameterError, match=r"expected \(N, 3\) and torch\.float32"):
        predict(Doubling(), images)


def test_the_runtimes_own_error_and_a_missing_answer_are_named():
    with pytest.raises(ParameterError, match=r"Doubler can't read 4 images: too small"):
        predict(Doubling(), -torch.ones(1, 3))
    open_ended = Doubling()
    open_ended.shape = [None, 3]
    with pytest.raises(ParameterError, match=r"the file gives 1 answers to 2 images"):
        predict(open_ended, torch.ones(2, 3))
