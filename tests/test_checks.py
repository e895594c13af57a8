import math

import numpy as np
import pytest
import torch

from attractor_lib.checks import check_number, check_whole


def test_what_is_in_range_comes_back():
    assert check_whole("n", 3, 1) == check_whole("n", 3, 3, 3) == 3
    assert check_number("x", 0.5, 0) == check_number("x", np.float32(0.5), 0.5, 0.5) == 0.5


@pytest.mark.parametrize("value", [0, 4, 2.0, True, "2", None, torch.tensor(2)])
def test_refuses_other_whole_numbers(value):
    with pytest.raises(ValueError, match=r"n must be a whole number from 1 to 3, got "):
        check_whole("n", value, 1, 3)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "2", None])
def test_refuses_other_numbers(value):
    with pytest.raises(ValueError, match="x must be a finite number > 0, got "):
        check_number("x", value, 0, open_low=True)


def test_says_what_was_expected():
    with pytest.raises(ValueError, match="n must be a whole number >= 2, got 1"):
        check_whole("n", 1, 2)
    with pytest.raises(ValueError, match="m must be a finite number from 0 to 1, got 2"):
        check_number("m", 2, 0, 1)
    with pytest.raises(ValueError, match="m must be a finite number > 0 and <= 1, got 0"):
        check_number("m", 0, 0, 1, open_low=True)
