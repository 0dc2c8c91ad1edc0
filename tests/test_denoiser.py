"""Networks somebody already has: what they are given, what they return, and what they are mistaken
for."""

import copy
import types

import pytest
import torch
from torch import nn

from vdiff import Denoiser, weighted_elbo
from vdiff._network import weights_dtype
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep, edm_time, flow_time, sigma_time
from vdiff.likelihood import Share
from vdiff.likelihood.protocol import computation_protocol
from vdiff.likelihood.verify import _Counted
from vdiff.nn import MLP
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import Eps, Flow, Parameterization, V, VarianceExploding, X
from vdiff.schedule import Linear, Tabulated

ORACLE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.5, 0.2]], [[0.04, 0.2], [0.09, 0.1]])


class EDMDenoiser(nn.Module):
    """D(x; σ) on z/α, perfect for the oracle's data; F is its inside."""

    def forward(self, noisy, sigma):
        logsnr = -2 * sigma.log()
        return ORACLE(noisy * logsnr.sigmoid().sqrt()[:, None], logsnr).x


class EDMInside(nn.Module):
    """F(c_in x; c_noise) with D = c_skip x + c_out F, σ_d = ½ (Karras et al., table 1)."""

    def forward(self, scaled, c_noise):
        sigma = torch.exp(4 * c_noise)[:, None]
        total = (sigma**2 + 0.25).sqrt()
        noisy = scaled * total
        return (EDMDenoiser()(noisy, sigma[:, 0]) - 0.25 / total**2 * noisy) / (
            sigma * 0.5 / total
        )


class Forwards(nn.Module):
    """Rectified flow with t = 1 at the noise, on z = (1 − t) x + t ε."""

    def forward(self, z, t):
        logsnr = 2 * torch.log((1 - t) / t)
        p = ORACLE(z / ((1 - t).square() + t.square()).sqrt()[:, None], logsnr)
        return p.eps - p.x


class Backwards(nn.Module):
    """The same with t = 1 at the data and target x − ε."""

    def forward(self, z, t):
        return -Forwards()(z, 1 - t)


class StepUNet(nn.Module):
    """Told a step of DDPM's table as an integer, returns an object with `.sample`."""

    def forward(self, z, step, label=None):
        assert step.dtype == torch.int64
        return types.SimpleNamespace(sample=ORACLE(z, Tabulated.linear_betas().table[step]).eps)


MODELS = {
    "edm D": lambda: Denoiser(EDMDenoiser(), VarianceExploding(X()), time=sigma_time),
    "edm F": lambda: Denoiser(EDMInside(), V(0.5), time=edm_time, output=torch.neg),
    "flow": lambda: Denoiser(Forwards(), Flow(), time=flow_time),
    "flow, other way": lambda: Denoiser(
        Backwards(), Flow(), time=lambda logsnr: 1 - flow_time(logsnr), output=torch.neg
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_another_convention_is_the_same_model(name):
    generator = torch.Generator().manual_seed(0)
    x = ORACLE.sample(64, generator)
    eps = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    options = {
        "schedule": Linear(8.0, -6.0),
        "t": torch.linspace(0.01, 0.99, 64, dtype=torch.float64),
        "eps": eps,
    }
    assert torch.allclose(
        weighted_elbo(MODELS[name](), x, **options), weighted_elbo(ORACLE, x, **options), rtol=1e-7
    )


def test_a_network_that_looks_up_integer_steps():
    table = Tabulated.linear_betas()
    model = Denoiser(
        StepUNet(), Eps(), time=TableStep(table, integer=True), output=lambda out: out.sample
    )
    x = ORACLE.sample(32, torch.Generator().manual_seed(0))
    options = {
        "schedule": table,
        "steps": 999,
        "t": torch.arange(1, 33, dtype=torch.float64) * 31 / 999,
        "eps": torch.ones(32, 2, dtype=torch.float64),
    }
    assert torch.allclose(
        weighted_elbo(model, x, **options, condition={"label": None}),
        weighted_elbo(ORACLE, x, **options),
        rtol=1e-12,
    )


def test_a_function_that_hides_a_network_is_warned_of():
    network = nn.Linear(2, 2)
    for hidden in (lambda z, t: network(z), network.forward):
        with pytest.warns(UserWarning, match="pass the module itself, with time= and output="):
            Denoiser(hidden, Eps())
    assert len(list(Denoiser(network, Eps()).parameters())) == 2


class Column(Parameterization):
    def row(self, logsnr):
        return 0.0, logsnr[:, None]


def test_a_row_of_the_wrong_shape_is_named():
    with pytest.raises(
        ValueError,
        match=(
            r"must have a row and an input scale of numbers or \(batch,\) tensors; got \(21, 1\) "
            r"from Column"
        ),
    ):
        Denoiser(lambda z, t: z, Column())


@pytest.mark.parametrize(
    ("weights", "data"),
    [
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float64),
    ],
)
def test_a_network_gets_its_own_dtype_and_answers_in_that_of_the_data(weights, data):
    model = Denoiser(MLP(2).to(weights), Eps())
    prediction = model(torch.ones(3, 2, dtype=data), torch.zeros(3))
    assert prediction.eps.dtype == data
    assert weighted_elbo(model, torch.ones(3, 2, dtype=data), schedule=Linear()).dtype == data


class Beside(nn.Module):
    """A network with one more weight, before or behind its own; it remembers the dtype of z."""

    def __init__(self, network, other, first=True):
        super().__init__()
        if first:
            self.other = other
        self.network = network
        if not first:
            self.other = other

    def forward(self, z, t):
        self.seen = z.dtype
        return self.network(z, t)


def frozen(dtype, *shape):
    return nn.Parameter(torch.ones(shape, dtype=dtype), requires_grad=False)


OTHERS = [
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.complex64,
    torch.int8,
    torch.float8_e4m3fn,
]
KINDS = {torch.float32, torch.float64, torch.bfloat16}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_another_weight_does_not_decide_the_dtype_of_z(dtype, first):
    network = MLP(2)
    x, t = (
        torch.randn(8, 2, generator=torch.Generator().manual_seed(0)),
        torch.linspace(0.1, 0.9, 8),
    )
    options = {"schedule": Linear(), "t": t, "eps": torch.ones(8, 2)}
    expected = weighted_elbo(Denoiser(network, V()), x, **options)
    for shape in ((), (4, 2)):  # a scalar and a table
        beside = Beside(network, frozen(dtype, *shape), first)
        assert torch.equal(weighted_elbo(Denoiser(beside, V()), x, **options), expected)
        assert beside.seen == torch.float32


@pytest.mark.parametrize(
    ("weights", "other", "expected"),
    [
        (torch.bfloat16, torch.float64, torch.bfloat16),  # float64 only where all weights are
        (torch.float64, torch.int8, torch.float64),
        (torch.float64, torch.float64, torch.float64),
        (torch.float16, torch.complex64, torch.float16),
    ],
)
def test_a_network_without_single_precision_keeps_its_own(weights, other, expected):
    beside = Beside(MLP(2).to(weights), frozen(other, 3))
    Denoiser(beside, V())(torch.ones(3, 2), torch.zeros(3))
    assert beside.seen == expected


def test_float16_and_bfloat16_meet_in_float32():
    beside = Beside(nn.Bilinear(2, 1, 2), frozen(torch.float16, 3))
    beside.network = nn.ParameterList([frozen(torch.bfloat16, 3)])
    model = Denoiser(
        beside, V(), call=lambda network, z, t: torch.full_like(z, float(z.dtype == torch.float32))
    )
    assert model(torch.ones(3, 2).double(), torch.zeros(3)).output.eq(1).all()


@pytest.mark.parametrize("z", sorted(KINDS, key=str), ids=str)
def test_what_is_no_weight_leaves_z_as_it_is(z):
    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3, dtype=torch.bfloat16))
            self.codes, self.rotation = frozen(torch.int8, 3), frozen(torch.complex64, 3)

        def forward(self, z, t):
            self.seen = z.dtype
            return z

    constants = Constants()
    Denoiser(constants, V())(torch.ones(3, 2, dtype=z), torch.zeros(3))
    assert constants.seen == z


def test_the_suite_of_estimators_and_the_record_know_all_weights():
    model = Denoiser(Beside(MLP(2), frozen(torch.bfloat16, 3)), V())
    assert _Counted(model).dtype == torch.float32
    assert computation_protocol(torch.float32, torch.device("cpu"), [model], Share())[
        "weights"
    ] == [
        "bfloat16",
        "float32",
    ]


def test_a_network_whose_first_layer_is_narrower_says_so():
    mixed = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.LayerNorm(2))
    with pytest.raises(RuntimeError) as caught:
        Denoiser(mixed, V(), call=lambda network, z, t: network(z))(
            torch.ones(3, 2), torch.zeros(3)
        )
    assert (
        "z (3, 2) in torch.float32, time (3,) in torch.float32. It has weights in torch.bfloat16 "
        "too" in caught.value.__notes__[0]
    )
    model = Denoiser(mixed, V(), call=lambda network, z, t: network(z.to(torch.bfloat16)))
    assert model(torch.ones(3, 2), torch.zeros(3)).output.dtype == torch.float32


class Transformer(nn.Module):
    """Called like SD3's transformer: everything by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, hidden_states, encoder_hidden_states=None, timestep=None):
        return (self.layer(hidden_states) + encoder_hidden_states * timestep[:, None],)


class TimeFirst(nn.Module):
    """Called like torchcfm's networks, forward(t, x, y)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t, x, y=None):
        return self.layer(x) + y * t[:, None]


CALLS = {
    "by name": (
        Transformer,
        lambda network, z, t, text: network(
            hidden_states=z, encoder_hidden_states=text, timestep=t
        ),
        lambda out: out[0],
    ),
    "time first": (TimeFirst, lambda network, z, t, text: network(t, z, text), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_network_that_is_called_in_another_way(name):
    kind, call, output = CALLS[name]
    network, text = kind(), torch.randn(8, 2)
    model = Denoiser(network, V(), call=call, output=output, time=flow_time)
    z, logsnr = torch.randn(8, 2), torch.linspace(-5, 5, 8)
    expected = network.layer(z) + text * flow_time(logsnr)[:, None]
    assert torch.allclose(model(z, logsnr, text=text).output, expected, atol=1e-6)
    assert set(model.state_dict()) == {"network.layer.weight", "network.layer.bias"}
    weighted_elbo(model, z, schedule=Linear(), condition={"text": text}).mean().backward()
    assert network.layer.weight.grad.abs().sum() > 0
    copied = copy.deepcopy(model)
    assert torch.equal(copied(z, logsnr, text=text).output, model(z, logsnr, text=text).output)


def test_a_module_that_a_call_hides_is_warned_of():
    network, encoder = TimeFirst(), nn.Linear(2, 2)
    with pytest.warns(
        UserWarning, match="call is a function around an nn.Module, whose parameters are hidden"
    ):
        Denoiser(network, V(), call=lambda network, z, t, y: network(t, z, encoder(y)))
    Denoiser(
        network, V(), call=lambda _, z, t, y: network(t, z, y)
    )  # the network itself is no stranger


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_table_or_a_double_scalar_does_not_decide_between_half_and_double(half):
    for wide, other in ((torch.float64, half), (half, torch.float64)):
        network = nn.Module()
        network.other = nn.Parameter(torch.zeros(3, 4, dtype=other))
        network.layer = nn.Linear(2, 2, dtype=wide)
        assert weights_dtype(network) == wide


def test_a_time_says_what_it_is():
    table = Tabulated([5.0, 1.0, -4.0])
    for time in (ScaledGamma(), ScheduleTime(Linear()), TableStep(table, integer=True)):
        assert repr(time).startswith(type(time).__name__ + "(")
    assert repr(ScaledGamma()) == "ScaledGamma(logsnr_max=13.3, logsnr_min=-5.0)"
