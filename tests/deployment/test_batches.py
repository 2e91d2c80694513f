"""Images that come at the same time are run together, and each client gets its own answer or its own error."""

import asyncio

import numpy as np
import pytest
import torch
from torch import nn

from kd_lab.deployment.batches import Batches, RequestError
from kd_lab.networks.predictions import BATCH_SIZE


class Counted(nn.Module):
    """Answer the largest pixel of an image, and note how many images come at a time; a negative one is too much."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def forward(self, x):
        self.counts.append(len(x))
        assert (x >= 0).all(), "a negative pixel"
        return x.flatten(1).amax(1, keepdim=True)


def images(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous().numpy()


def ask(batches, *requests):
    async def all_at_once():
        return await asyncio.gather(*map(batches.logits, requests), return_exceptions=True)

    return asyncio.run(all_at_once())


def test_what_comes_together_is_run_together_and_given_to_whom_it_belongs():
    network = Counted()
    found = ask(Batches(network), images(1.0), images(2.0, 3.0), images(4.0))
    assert network.counts == [4]
    assert [each.ravel().tolist() for each in found] == [[1.0], [2.0, 3.0], [4.0]]


def test_those_that_come_one_after_another_in_the_turns_of_the_loop_share_a_pass_too():
    async def one_after_another(batches):
        tasks = []
        for value in range(200):
            tasks.append(asyncio.create_task(batches.logits(images(float(value)))))
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    network = Counted()
    found = asyncio.run(one_after_another(Batches(network)))
    assert network.counts == [BATCH_SIZE, 200 - BATCH_SIZE]
    assert np.array_equal(np.concatenate(found).ravel(), np.arange(200.0))


def test_no_batch_is_larger_than_the_kit_s_and_nothing_is_lost():
    network = Counted()
    many = [images(*np.arange(first, first + 60.0)) for first in range(0, 600, 60)] + [images(*np.arange(600.0, 900.0))]
    found = ask(Batches(network), *many)
    assert max(network.counts) <= BATCH_SIZE and sum(network.counts) == 900
    assert np.array_equal(np.concatenate(found).ravel(), np.arange(900.0))


@pytest.mark.parametrize("bad", [-1.0, float("inf")])
def test_only_the_client_of_a_bad_image_hears_of_it(bad):
    batches = Batches(Counted())
    for _ in range(2):  # and it is as it was before
        good, wrong, other = ask(batches, images(1.0), images(bad), images(3.0))
        assert isinstance(wrong, RequestError) and (good, other) == (1.0, 3.0)


def test_a_client_that_leaves_takes_nothing_with_it():
    async def one_leaves(batches):
        leaving, staying = (asyncio.create_task(batches.logits(images(value))) for value in (1.0, 2.0))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(one_leaves(Batches(Counted()))) == 2.0


def test_a_network_that_answers_too_few_images_is_refused():
    (error,) = ask(Batches(nn.Flatten(0, 1)), np.ones((2, 3, 4), np.float32))
    assert isinstance(error, RequestError)
