"""The flow of a model between the ends of a schedule: its protocol, shapes and results."""

import pytest
import torch

from vdiff.likelihood.flow_solver import RESULTS, FlowSolver
from vdiff.likelihood.trace import Exact, Hutchinson
from vdiff.oracle import Gaussian, GaussianMixture
from vdiff.schedule import Linear

ORACLE = GaussianMixture([0.3, 0.7], [[-1.0, 0.2], [0.5, -0.3]], [[0.04, 0.2], [0.09, 0.1]])
X = ORACLE.sample(3, torch.Generator().manual_seed(0))


def flow(trace, prior=None, tolerance=1e-7):
    return FlowSolver(
        ORACLE, Linear(15.0, -9.0), prior, trace, tolerance, "dopri5", 0.5, 1000, None, {}, len(X)
    )


def test_the_protocol_names_what_the_density_depends_on():
    protocol = flow(Exact()).protocol(2)
    assert protocol["logsnr"] == [-9.0, 15.0]
    assert (protocol["prior"], protocol["trace"]) == ("N(0, I)", "Exact()")
    priors = [flow(Exact(), Gaussian([0.0, m], [1.0, 1.0])).protocol(2)["prior"] for m in (0, 1)]
    assert priors[0] != priors[1]


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(probes=3)], ids=repr)
def test_results_have_their_shapes(trace):
    solver, rows = flow(trace), torch.arange(3)
    results = solver.solve(X, rows, 0, audit=False)
    assert tuple(results) == RESULTS
    shapes = {name: tuple(value.shape[1:]) for name, value in results.items()}
    assert shapes == solver.shapes(X)
    assert torch.equal(results["change"], torch.zeros(3))


def test_the_exact_trace_gives_the_density_of_the_oracle():
    solver = flow(Exact(), ORACLE)
    nats = solver.solve(X, torch.arange(3), 0, audit=False)["nats"][:, 0]
    assert torch.allclose(nats, -ORACLE.log_prob(X), atol=1e-4)


def test_probes_belong_to_the_number_of_an_example():
    solver = flow(Hutchinson(probes=2))
    three = solver.solve(X, torch.arange(3), 0, audit=False)["nats"]
    last = solver.solve(X[2:], torch.tensor([2]), 0, audit=False)["nats"]
    first = solver.solve(X[2:], torch.tensor([0]), 0, audit=False)["nats"]
    assert torch.allclose(three[2:], last, atol=1e-5)
    assert not torch.allclose(first, last, atol=1e-3)
