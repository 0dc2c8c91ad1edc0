"""The trace of a Jacobian: exact, and from probes of random signs."""

import pytest
import torch

from vdiff.likelihood.trace import Exact, Hutchinson, Trace, default_trace


def generators(n):
    return [torch.Generator().manual_seed(i) for i in range(n)]


def test_probes_are_signs_and_a_function_of_their_generators():
    z = torch.zeros(4, 5)
    probes = Hutchinson(probes=3).directions(z, generators(4))
    assert probes.shape == (3, 4, 5)
    assert probes.abs().eq(1).all()
    assert 0 < probes.gt(0).sum() < probes.numel()
    assert torch.equal(probes, Hutchinson(probes=3).directions(z, generators(4)))


def test_the_mean_over_probes_is_the_trace_of_a_linear_field():
    torch.manual_seed(0)
    z, matrix = torch.randn(4, 5).requires_grad_(), torch.randn(5, 5)
    hutchinson = Hutchinson(probes=2000)
    probes = hutchinson.directions(z, generators(4))
    estimates = hutchinson.divergence(z @ matrix, z, probes)
    assert ((estimates.mean(1) - matrix.trace()).abs() < 4 * estimates.std(1) / 2000**0.5).all()
    exact = Exact().divergence(z @ matrix, z, Exact().directions(z, []))
    assert torch.allclose(exact, matrix.trace().expand(4, 1))


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(probes=3)], ids=repr)
def test_a_constant_field_has_no_divergence(trace):
    z = torch.zeros(2, 4)
    divergence = trace.divergence(torch.ones(2, 4), z, trace.directions(z, generators(2)))
    assert torch.equal(divergence, torch.zeros(2, 1 if trace.exact else 3))


def test_gradients_go_through_the_divergence_where_asked():
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    trace = Exact()
    directions = trace.directions(z, [])
    divergence = trace.divergence(z**3, z, directions, differentiable=True)  # 3 Σ z²
    (gradient,) = torch.autograd.grad(divergence.sum(), z)
    assert torch.equal(gradient, 6 * z.detach())
    assert not trace.divergence(z**3, z, directions).requires_grad


def test_the_default_is_exact_up_to_sixteen_dimensions():
    assert isinstance(default_trace(16), Exact)
    assert isinstance(default_trace(17), Hutchinson)
    with pytest.raises(TypeError, match="abstract"):
        Trace()


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(probes=3000)], ids=repr)
def test_a_weight_multiplies_each_term_of_the_trace(trace):
    torch.manual_seed(0)
    z, matrix, weight = torch.randn(2, 4).requires_grad_(), torch.randn(4, 4), torch.rand(1, 4)
    directions = trace.directions(z, generators(2))
    found = trace.divergence(z @ matrix, z, directions, weight=weight)
    error = 1e-5 if trace.exact else 4 * found.std(1).max() / 3000**0.5
    assert ((found.mean(1) - weight[0] @ matrix.diagonal()).abs() < error).all()
