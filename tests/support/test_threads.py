"""PyTorch's threads: so many in a block, and as before after it."""

import pytest
import torch

from prunekit.support.threads import threads


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_so_many_in_the_block_and_as_before_after_it():
    torch.set_num_threads(2)
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_an_error_restores_them_too():
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
