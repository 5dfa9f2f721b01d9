"""The measure of how far outputs differ between examples, and its threshold."""

import torch

from hessian_tools import stream
from hessian_tools.inner.collapse import homogeneity, output_variation

SPREAD = torch.randn(20, 5, generator=stream(0, "spread"), dtype=torch.float64)


def test_variation_is_the_share_of_the_mean_square_between_examples():
    outputs = SPREAD + torch.tensor([3.0, 0.0, 0.0, 0.0, -1.0])
    centred = outputs - outputs.mean(1, keepdim=True)
    expected = centred.var(0, correction=0).sum() / (centred**2).mean(0).sum()
    assert torch.allclose(output_variation(outputs), expected, rtol=1e-12)
    # A shift of all logits changes no probability, and so it does not change the variation; nor does their scale.
    assert torch.allclose(output_variation(7 * outputs + 100), expected, rtol=1e-10)


def test_outputs_that_are_nearly_equal_count_as_collapsed():
    common = torch.tensor([4.0, 1.0, -2.0, -2.0, -1.0], dtype=torch.float64)
    assert homogeneity(common + 0.01 * SPREAD).collapsed
    assert not homogeneity(common + SPREAD).collapsed
    assert not homogeneity(1e-6 * SPREAD).collapsed  # the probabilities are nearly uniform, but differ
    assert homogeneity(torch.zeros(4, 3)) == homogeneity(torch.ones(4, 3))
    assert homogeneity(torch.zeros(4, 3)).collapsed


def test_a_single_output_is_not_centred():
    assert homogeneity(torch.tensor([[2.0], [2.0]])).variation == 0.0
    assert homogeneity(torch.tensor([[1.0], [-1.0]])).variation == 1.0
