"""Least squares from sums, against NumPy's from the rows themselves."""

from __future__ import annotations

import numpy as np
import torch

from prunekit.pruning.repair.sums import Sums, best_change


def rows(count: int, groups: int = 1, features: int = 5, outputs: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, groups, features, generator=generator, dtype=torch.float64) + 1
    mixing = torch.randn(groups, features, outputs, generator=generator, dtype=torch.float64)
    return x, torch.einsum("ngf,gfo->ngo", x, mixing) + 2.5


def test_sums_of_parts_are_the_sums_of_the_whole():
    x, r = rows(40, groups=2)
    whole, parts = Sums.of(x, r), Sums.of(x[:13], r[:13]) + Sums.of(x[13:], r[13:])
    for name, value in vars(whole).items():
        torch.testing.assert_close(torch.as_tensor(getattr(parts, name)), torch.as_tensor(value))


def test_the_solution_is_that_of_lstsq_and_the_error_that_of_the_rows():
    x, r = rows(200)
    r = r + 0.1 * torch.randn(r.shape, generator=torch.Generator().manual_seed(1)).double()
    fit, held_out = Sums.of(x[:150], r[:150]), Sums.of(x[150:], r[150:])
    change = best_change(fit, held_out, biased=True, weights=True, ridges=(1e-12,))
    with_one = np.hstack([x[:150, 0].numpy(), np.ones((150, 1))])
    solution = np.linalg.lstsq(with_one, r[:150, 0].numpy(), rcond=None)[0]
    np.testing.assert_allclose(change.weight[0].numpy(), solution[:-1], atol=1e-6)
    np.testing.assert_allclose(change.bias[0].numpy(), solution[-1], atol=1e-6)
    rest = r[150:, 0] - x[150:, 0] @ change.weight[0] - change.bias[0]
    torch.testing.assert_close(held_out.error(change)[0], rest.square().sum())


def test_a_singular_problem_has_a_finite_solution():
    x, r = rows(50)
    x[:, :, 1], x[:, :, 2] = x[:, :, 0], 0
    change = best_change(Sums.of(x, r), Sums.of(x, r), biased=True, weights=True)
    assert torch.isfinite(change.weight).all()
    assert change.weight[0, 2].abs().max() == 0


def test_nothing_changes_where_nothing_helps():
    x = torch.randn(30, 1, 4, generator=torch.Generator().manual_seed(2)).double()
    r = torch.randn(30, 1, 2, generator=torch.Generator().manual_seed(3)).double()
    fit, other = Sums.of(x[:6], r[:6]), Sums.of(x[6:], -r[6:] * 0)
    change = best_change(fit, other, biased=True, weights=True)
    assert change.weight.abs().max() == 0
    assert change.bias.abs().max() == 0


def test_outputs_without_a_bias_are_solved_through_the_origin():
    x, r = rows(80)
    sums = Sums.of(x, r)
    change = best_change(sums, sums, biased=False, weights=True, ridges=(1e-12,))
    assert change.bias.abs().max() == 0
    solution = np.linalg.lstsq(x[:, 0].numpy(), r[:, 0].numpy(), rcond=None)[0]
    np.testing.assert_allclose(change.weight[0].numpy(), solution, atol=1e-6)
