"""The protocol of an evaluation."""

from dataclasses import replace

import torch

from vdiff.decoder import Categorical
from vdiff.likelihood import Share, VarianceReduction
from vdiff.likelihood.difference import Difference
from vdiff.likelihood.digest import weights_digest
from vdiff.likelihood.integrand import Integrand
from vdiff.likelihood.protocol import (
    computation_protocol,
    data_protocol,
    evaluation_protocol,
    model_protocol,
)
from vdiff.likelihood.stages import Budget, Evaluation
from vdiff.oracle import Lattice
from vdiff.sampling import Clipped
from vdiff.schedule import Linear

DECODER = Categorical(levels=4)
ORACLE = Lattice(DECODER.level_values, [0.4, 0.3, 0.2, 0.1])
ENDS = Linear(7.0, -6.0)


def integrand(images=5, model=ORACLE, kind=Integrand):
    return kind(
        *([model] if kind is Integrand else [model, Lattice(DECODER.level_values, [0.25] * 4)]),
        levels(images),
        ENDS,
        DECODER,
    )


def levels(images):
    return (torch.arange(images) % 4)[:, None]


PLAIN = VarianceReduction.plain()


def test_the_protocol_counts_evaluations_of_both_models():
    run = Evaluation(
        integrand(kind=Difference),
        replace(PLAIN, importance=True, pilot=512),
        Budget(draws=8, replicates=3),
    )
    run.record = {"ema": 0.5}
    known = evaluation_protocol(run, run())
    assert known["pilot"] == 512
    assert known["evaluations"] == 3 * 5 * 8 * 2 + 512
    assert (known["replicates"], known["draws"], known["logsnr"], known["ema"]) == (
        3,
        8,
        [-6.0, 7.0],
        0.5,
    )
    assert (known["T"], known["schedule"]) == ("∞", None)
    chain = Evaluation(
        Integrand(ORACLE, levels(5), ENDS, DECODER, 7), PLAIN, Budget(draws=8, replicates=2)
    )
    assert [evaluation_protocol(chain, chain())[word] for word in ("T", "schedule")] == [
        7,
        repr(ENDS),
    ]
    assert data_protocol(torch.zeros(2, 3, 4))["shape"] == [3, 4]


def test_what_a_model_and_a_computation_say():
    guided = Clipped(ORACLE)
    assert model_protocol(guided) == guided.protocol
    assert model_protocol(abs) == {}
    double = torch.nn.Linear(1, 1).double()
    facts = computation_protocol(torch.float32, torch.device("cpu"), [double, abs], Share(1, 3))
    assert (facts["dtype"], facts["weights"], facts["processes"]) == ("float32", ["float64"], 3)
    assert facts["model"] == weights_digest(double)
    assert {"threads", "torch", "vdiff"} <= set(facts)
