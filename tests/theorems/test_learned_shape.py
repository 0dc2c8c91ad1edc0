"""The shape of a learned schedule follows the variance of the loss, everything else the bound, in
one backward pass."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vdiff import Denoiser, Objective, Prediction, elbo, hybrid_loss, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.denoiser import ScheduleTime
from vdiff.groups import parameter_groups
from vdiff.objective import VLB
from vdiff.oracle import Lattice
from vdiff.parameterization import Eps, V
from vdiff.schedule import Adaptive, Linear, Monotone, Schedule, Shifted, Spline
from vdiff.schedule.learned import Learned
from vdiff.times import generator_of
from vdiff.variance import LearnedRange
from vdiff.weighting import MSE, Sigmoid

from .reference import gmm1d, line_nodes, panels, posterior_moments

LEVELS = 5
SHAPES = {
    "monotone": lambda **o: Monotone(6.0, -4.0, hidden=16, **o),
    "spline": lambda **o: Spline(6.0, -4.0, knots=7, **o),
}
shapes = pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        for p in self.parameters():
            p.data = 0.7 * torch.randn(p.shape, generator=generator, dtype=torch.float64)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(torch.cat([z, 0.2 * logsnr[:, None]], 1))))
        return out


def stirred(schedule: Schedule) -> Schedule:
    generator = torch.Generator().manual_seed(4)
    for name, p in schedule.named_parameters():
        p.data += (0.1 if name in ("low", "high") else 0.5) * torch.randn(
            p.shape, generator=generator, dtype=p.dtype
        )
    return schedule


def objective(make, **options) -> Objective:
    schedule = stirred(make(**options))
    schedule.mean_loss.fill_(7.0)
    return Objective(Denoiser(Net(), V()), schedule=schedule, loss=VLB(Categorical(LEVELS)))


def draws(n: int = 24) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    t, eps = (
        torch.rand(n, generator=generator, dtype=torch.float64),
        torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )
    return torch.randint(0, LEVELS, (n, 2), generator=generator), {"t": t, "eps": eps}


def is_shape(name: str) -> bool:
    return name.startswith("schedule.") and name not in ("schedule.low", "schedule.high")


def in_two_passes(
    one: Objective,
    data: Tensor,
    given: dict[str, Tensor],
    mean: float,
    center: float | None = None,
) -> dict[str, Tensor]:
    """The bound's gradient for the network and the ends, that of E (ℓ − m)²/m for the shape, each
    by a pass of its own."""
    shape = {n: p for n, p in one.named_parameters() if is_shape(n)}
    rest = {n: p for n, p in one.named_parameters() if not is_shape(n)}
    one.schedule.follow_variance = False
    bound = one.bound(data, **given)
    squares = ((bound.diffusion - (mean if center is None else center)) ** 2 / mean).mean()
    one.schedule.follow_variance = True
    by_shape = torch.autograd.grad(squares, list(shape.values()), retain_graph=True)
    by_rest = torch.autograd.grad(bound.total.mean(), list(rest.values()))
    return dict(zip([*shape, *rest], [*by_shape, *by_rest], strict=True))


def assert_gradients(one: Objective, expected: dict[str, Tensor]) -> None:
    got = {n: p.grad for n, p in one.named_parameters()}
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=1e-11, atol=1e-13 * expected[name].abs().max().item()
        )


@pytest.mark.usefixtures("float64")
@shapes
def test_one_pass_is_the_two_passes(make):
    one, (data, given) = objective(make), draws()
    expected = in_two_passes(one, data, given, 7.0)
    one(data, **given).mean().backward()
    assert_gradients(one, expected)
    assert all(expected[n].abs().max() > 0 for n in expected)


@shapes
def test_the_shape_and_its_slope_are_differentiated_rightly(make):
    schedule = stirred(make(learn_ends=False))
    names, values = zip(*schedule.named_parameters(), strict=True)
    t = torch.linspace(0.02, 0.99, 9, dtype=torch.float64, requires_grad=True)

    def shape(t: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(
            ShapeOf(schedule),
            {f"schedule.{n}": v for n, v in zip(names, values, strict=True)},
            (t,),
        )

    assert torch.autograd.gradcheck(
        shape, (t, *(v.detach().clone().requires_grad_() for v in values))
    )
    u, slope = schedule.cdf_and_pdf(t)
    (of_u,) = torch.autograd.grad(u.sum(), t)
    torch.testing.assert_close(of_u, slope)


class ShapeOf(nn.Module):
    def __init__(self, schedule: Learned) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, t: Tensor) -> Tensor:
        return torch.stack(self.schedule.cdf_and_pdf(t))


@pytest.mark.usefixtures("float64")
@shapes
def test_it_does_not_matter_how_the_loss_is_reduced(make):
    """Scaled as a GradScaler does, in micro-batches of unequal size, and through a part of the
    batch alone."""
    one, (data, given) = objective(make), draws()
    expected = in_two_passes(one, data, given, 7.0)
    (one(data, **given).mean() * 1024.0).backward()
    assert_gradients(one, {n: 1024 * g for n, g in expected.items()})
    one.zero_grad()
    for part in (slice(0, 5), slice(5, 24)):
        (one(data[part], **{k: v[part] for k, v in given.items()}).sum() / 24).backward()
    assert_gradients(one, expected)
    half = in_two_passes(one, data[:12], {k: v[:12] for k, v in given.items()}, 7.0)
    one.zero_grad()
    one(data, **given)[:12].mean().backward()
    assert_gradients(one, half)


@pytest.mark.usefixtures("float64")
@shapes
def test_two_losses_may_be_on_their_way_at_once(make):
    one, (data, given) = objective(make), draws()
    parts = [(data[i::2], {k: v[i::2] for k, v in given.items()}) for i in (0, 1)]
    expected = [in_two_passes(one, *part, 7.0) for part in parts]
    first, second = (one(rows, **some).mean() for rows, some in parts)
    for loss, want in ((first, expected[0]), (second, expected[1])):
        one.zero_grad()
        loss.backward()
        assert_gradients(one, want)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # dynamo's own, of its inputs
@pytest.mark.usefixtures("float64")
@shapes
def test_a_copy_and_a_compiled_network_learn_the_same(make):
    one, (data, given) = objective(make), draws()
    expected = in_two_passes(one, data, given, 7.0)
    averaged = AveragedModel(one).module
    compiled = copy.deepcopy(one)
    compiled.model.network.compile(backend="aot_eager", fullgraph=True)
    for other in (averaged, compiled):
        other(data, **given).mean().backward()
        assert_gradients(other, expected)


@pytest.mark.usefixtures("float64")
@shapes
def test_on_a_chain_the_shape_follows_the_bound(make):
    one, (data, given) = objective(make), draws()
    given["t"] = torch.ceil(given["t"] * 5) / 5
    loss = elbo(
        one.model, data, schedule=one.schedule, decoder=one.decoder, steps=5, **given
    ).total.mean()
    loss.backward()
    for name, p in one.schedule.named_parameters():
        p.data.view(-1)[0] += 1e-6
        up = elbo(
            one.model, data, schedule=one.schedule, decoder=one.decoder, steps=5, **given
        ).total.mean()
        p.data.view(-1)[0] -= 2e-6
        down = elbo(
            one.model, data, schedule=one.schedule, decoder=one.decoder, steps=5, **given
        ).total.mean()
        p.data.view(-1)[0] += 1e-6
        assert p.grad.view(-1)[0].item() == pytest.approx(
            ((up - down) / 2e-6).item(), rel=1e-5, abs=1e-7
        ), name


@pytest.mark.usefixtures("float64")
@shapes
def test_the_expected_loss_does_not_depend_on_the_shape(make):
    """Without the rule the shape's gradient is noise of mean zero; with it, the gradient of the
    variance, that of E ℓ²."""
    schedule = stirred(make(learn_ends=False, follow_variance=False))
    t, dt = (
        torch.from_numpy(a)
        for a in panels(
            schedule.inverse(torch.linspace(6.0, -4.0, 61, dtype=torch.float64)).detach().numpy(),
            12,
        )
    )  # its knots among the breaks
    x, eps, weight = line_nodes(schedule(t).detach())
    each = len(weight) // len(t)
    weight = weight * dt.repeat_interleave(each)

    def loss() -> Tensor:
        return weighted_elbo(
            gmm1d(),
            x,
            schedule=schedule,
            weighting=Sigmoid(1.0),
            t=t.repeat_interleave(each),
            eps=eps,
        )

    parameters = list(schedule.parameters())
    noise = torch.autograd.grad(weight @ loss(), parameters)
    of_square = torch.autograd.grad(weight @ loss().square(), parameters)
    centered = torch.autograd.grad(weight @ (loss() - 3.0).square(), parameters)
    schedule.follow_variance = True
    schedule.mean_loss.fill_(3.0)
    ruled = torch.autograd.grad(weight @ loss(), parameters)
    for n, s, r, c in zip(noise, of_square, ruled, centered, strict=True):
        assert n.abs().max() < 1e-6 * s.abs().max()
        torch.testing.assert_close(3.0 * r, c, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(3.0 * r, s, rtol=1e-5, atol=1e-5 * s.abs().max().item())


@pytest.mark.usefixtures("float64")
def test_the_mean_stands_still_within_a_step_and_then_follows():
    one, (data, given) = objective(SHAPES["spline"]), draws()
    schedule = one.schedule
    schedule.mean_loss.zero_()
    losses = one.bound(data, **given).diffusion
    blind = 0.5 * 2 * (schedule.logsnr_max - schedule.logsnr_min)  # ‖ε‖² = d over the whole range
    expected = in_two_passes(one, data, given, blind, center=0.0)
    one(data, **given).mean().backward()
    assert_gradients(one, expected)
    schedule.seen.zero_()
    for part in (slice(0, 5), slice(5, 24)):
        one(data[part], **{k: v[part] for k, v in given.items()})
    assert schedule.mean_loss == 0
    schedule.update()
    assert schedule.mean_loss.item() == pytest.approx(losses.mean().item())
    one(data[:5], **{k: v[:5] for k, v in given.items()})
    schedule.update(lambda statistics: 2 * statistics)  # two ranks that saw the same
    assert schedule.mean_loss.item() == pytest.approx(
        0.99 * losses.mean().item() + 0.01 * losses[:5].mean().item()
    )
    before = schedule.mean_loss.clone()
    schedule.update()  # nothing seen
    schedule.seen += torch.tensor([math.nan, 1.0])
    schedule.update()
    assert schedule.mean_loss == before
    assert not schedule.seen.any()


def test_validation_is_not_noted():
    one, (data, given) = objective(SHAPES["spline"]).float(), draws()
    given = {"t": given["t"].float(), "eps": given["eps"].float()}
    with torch.no_grad():
        one(data, **given)
    one.eval()
    one(data, **given)
    assert not one.schedule.seen.any()


def test_what_never_passed_the_loss_gives_the_shape_nothing():
    schedule = Spline()
    logsnr, rate, *_ = schedule.at(torch.rand(8, dtype=torch.float64))
    (logsnr + rate).sum().backward()
    assert not schedule.log_density.grad.any()


@pytest.mark.parametrize(
    "schedule",
    [Monotone(learn_ends=False), Spline(learn_ends=False), Spline(), Adaptive()],
    ids=repr,
)
def test_an_objective_that_would_move_with_the_schedule_is_refused(schedule):
    with pytest.raises(ValueError, match=r"MSE: argument 'schedule' must be fixed.*moves with it"):
        MSE(schedule, V())
    model = Denoiser(lambda z, logsnr: torch.cat([z, z], 1), Eps(), variance=LearnedRange())
    with pytest.raises(
        ValueError,
        match=r"hybrid_loss: argument 'schedule' must have a fixed shape.*elbo\(…, steps=T\)",
    ):
        hybrid_loss(model, torch.randn(4, 2), schedule=schedule, steps=10)
    with pytest.raises(
        ValueError, match="Shifted: argument 'schedule' must have fixed ends and shape"
    ):
        Shifted(schedule, 1.0)
    with pytest.raises(ValueError, match="ScheduleTime: argument 'schedule' must be fixed"):
        ScheduleTime(schedule)
    weighted_elbo(
        Denoiser(lambda z, logsnr: z, Eps()),
        torch.randn(4, 2),
        schedule=schedule,
        weighting=MSE(Linear(), V()),
    )


def test_a_wrapped_network_beside_a_schedule_that_learns_is_refused():
    class Wrapped(nn.Linear):
        pass

    Wrapped.__name__ = "DistributedDataParallel"
    model, x = (
        Denoiser(nn.Sequential(Wrapped(2, 2)), Eps(), time=lambda logsnr: logsnr),
        torch.randn(4, 2),
    )
    for schedule in (Monotone(hidden=4), Adaptive()):
        with pytest.raises(
            ValueError,
            match=(
                "weighted_elbo: argument 'model' must not be wrapped in DDP where the schedule is "
                "learned"
            ),
        ):
            weighted_elbo(model, x, schedule=schedule)


# ── what it learns
# ──────────────────────────────────────────────────────────────────────


def above_the_best(schedule: Schedule) -> float:
    """The variance of one draw on the one-dimensional mixture under a schedule, over the least of
    any."""
    lam = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 601, dtype=torch.float64)
    m, v2 = (torch.from_numpy(a) for a in posterior_moments(lam.numpy()))
    # given z, ε − ε̂ is close to Gaussian only where one component rules: its fourth moment is the
    # mixture's own
    x, eps, weight = line_nodes(lam)
    each = len(weight) // len(lam)
    level = lam.repeat_interleave(each)
    z = level.sigmoid().sqrt()[:, None] * x + level.neg().sigmoid().sqrt()[:, None] * eps
    q = (weight * (eps - gmm1d()(z, level).eps)[:, 0] ** 4).view(len(lam), each).sum(1)
    assert (q >= v2 * 0.999).all()
    loss = 0.5 * torch.trapezoid(m, lam)
    best = 0.25 * torch.trapezoid(q.sqrt(), lam) ** 2 - loss**2
    got = 0.25 * torch.trapezoid(q / schedule.density(lam).detach(), lam) - loss**2
    return (got / best).item()


def learn(schedule: Schedule, steps: int, batch: int, lr: float = 0.02) -> Schedule:
    oracle, optimizer = (
        gmm1d(),
        torch.optim.Adam([{"params": list(schedule.parameters()), "lr": lr}]),
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        generator = generator_of(0, step)
        optimizer.zero_grad()
        weighted_elbo(
            oracle, oracle.sample(batch, generator), schedule=schedule, generator=generator
        ).mean().backward()
        optimizer.step()
        schedule.update()
    return schedule


@pytest.mark.parametrize(
    ("schedule", "steps", "batch", "within"),
    [
        (Spline(13.3, -5.0, learn_ends=False), 1500, 512, 1.03),
        (Monotone(13.3, -5.0, learn_ends=False), 500, 128, 1.25),
    ],
    ids=["spline", "monotone"],
)
def test_the_shape_finds_the_least_variance(schedule, steps, batch, within):
    assert above_the_best(schedule) == pytest.approx(above_the_best(Linear(13.3, -5.0)), rel=1e-3)
    assert above_the_best(Linear(13.3, -5.0)) == pytest.approx(1.492, abs=0.003)
    assert above_the_best(learn(schedule, steps, batch)) < within


class Scaled:
    """Four fifths of the perfect ε̂: an error that stays at both ends, so that a finite range is
    the best."""

    def __init__(self, oracle: Lattice) -> None:
        self.oracle = oracle

    def __call__(self, z: Tensor, logsnr: Tensor) -> Prediction:
        return Prediction(z, logsnr, 0.8 * self.oracle(z, logsnr).eps, Eps())


def scaled_error(oracle: Lattice, logsnr: Tensor) -> Tensor:
    """E(ε − 0.8 ε̂*)² = m + 0.04 (1 − m)."""
    mmse = oracle.mmse(logsnr)
    return mmse + 0.04 * (1 - mmse)


def test_ends_from_wrong_starts_reach_the_best_bound():
    """Each end stands where its gradient of the bound vanishes: half the error there against the
    decoder and the prior."""
    pmf, decoder = (
        torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64),
        Categorical(LEVELS),
    )
    grid = decoder.encode(torch.arange(LEVELS)[:, None])[:, 0].double()
    oracle = Lattice(grid, pmf)

    def by_low(low: float) -> float:
        lam = torch.tensor([low], dtype=torch.float64)
        signal = lam.sigmoid()
        prior = 0.5 * signal * (1 - signal) * (pmf @ grid**2 - 1) + 0.5 * signal
        return (prior - 0.5 * scaled_error(oracle, lam)).item()

    def by_high(high: float) -> float:
        lam, h = torch.tensor([high], dtype=torch.float64), 1e-4
        up, down = (oracle.bound(high + s, -5.0, decoder).reconstruction for s in (h, -h))
        return ((up - down) / (2 * h) + 0.5 * scaled_error(oracle, lam)).item()

    low, high = root(by_low, -12.0, 2.0), root(by_high, 2.0, 9.0)
    for start in ((8.0, -9.0), (3.0, 0.5)):
        schedule, lr = Spline(*start, knots=16), 0.1
        optimizer = torch.optim.Adam(schedule.parameters())
        for step in range(500):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / 500))
            generator = generator_of(3, step)
            data = torch.multinomial(pmf, 1024, True, generator=generator)[:, None]
            optimizer.zero_grad()
            elbo(
                Scaled(oracle), data, schedule=schedule, decoder=decoder, generator=generator
            ).total.mean().backward()
            optimizer.step()
            schedule.update()
        assert (schedule.logsnr_min, schedule.logsnr_max) == pytest.approx(
            (low, high), abs=0.4
        )  # the bound is flat there: 0.001 nats at that distance


def root(slope, below: float, above: float) -> float:
    """Where a slope turns from negative to positive."""
    assert slope(below) < 0 < slope(above)
    for _ in range(40):
        middle = 0.5 * (below + above)
        below, above = (middle, above) if slope(middle) < 0 else (below, middle)
    return below


# ── what it keeps
# ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "make",
    [
        lambda: Monotone(6.0, -4.0, hidden=64, learn_ends=False),
        lambda: Spline(6.0, -4.0, learn_ends=False),
    ],
)
def test_long_training_leaves_the_ends_and_the_order(make):
    """Under AdamW with decay on all else, autocast on, and a rate at which every shape runs
    wild."""
    one = Objective(Denoiser(Net().float(), V()), schedule=make())
    optimizer = torch.optim.AdamW(
        parameter_groups(one, lr=1e-3, weight_decay=0.1, schedule_lr=0.3)
    )
    x = torch.randn(16, 2)
    for step in range(400):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = one(x, generator=generator_of(2, step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one.schedule.update()
    assert_ordered(one.schedule)


def assert_ordered(schedule: Learned) -> None:
    with torch.no_grad():
        u = torch.cat(
            [
                schedule.cdf_and_pdf(t)[0]
                for t in torch.linspace(0, 1, 1_000_001, dtype=torch.float64).split(100_000)
            ]
        )
        assert (u[0], u[-1]) == (0.0, 1.0)
        logsnr = schedule.logsnr_max - (schedule.logsnr_max - schedule.logsnr_min) * u
    assert (logsnr.diff() < 0).all()
    assert [logsnr[0].item(), logsnr[-1].item()] == pytest.approx([6.0, -4.0], abs=1e-12)


@pytest.mark.parametrize(
    "make",
    [*SHAPES.values(), lambda: Adaptive(6.0, -4.0, bins=10, warmup=1)],
    ids=[*SHAPES, "adaptive"],
)
def test_a_run_that_is_killed_resumes_bit_for_bit(make, tmp_path):
    def fresh():
        torch.manual_seed(0)
        one = Objective(
            Denoiser(Net().float(), V()), schedule=make(), loss=VLB(Categorical(LEVELS))
        )
        return one, torch.optim.AdamW(parameter_groups(one, lr=1e-3, weight_decay=0.01))

    def run(one, optimizer, first, last):
        data, _ = draws()
        for step in range(first, last):
            for part in (data[:10], data[10:]):
                one(part, generator=generator_of(3, step, len(part))).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            one.schedule.update()

    straight, optimizer = fresh()
    run(straight, optimizer, 0, 12)
    killed, optimizer = fresh()
    run(killed, optimizer, 0, 5)
    torch.save(
        {"objective": killed.state_dict(), "optimizer": optimizer.state_dict()},
        tmp_path / "checkpoint.pt",
    )
    resumed, optimizer = fresh()
    state = torch.load(tmp_path / "checkpoint.pt")
    resumed.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    run(resumed, optimizer, 5, 12)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert any(
        not torch.equal(value, fresh()[0].schedule.state_dict()[k])
        for k, value in straight.schedule.state_dict().items()
    )


def test_the_networks_own_backward_is_autograds_over_many_blocks():
    """Times beyond one block (32), against sigmoids written out."""
    schedule = stirred(Monotone(6.0, -4.0, hidden=16))
    t = torch.rand(
        100, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).requires_grad_()
    weights = torch.randn(2, 100, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    inputs = [t, schedule.bias, schedule.log_inner, schedule.log_outer]
    value, slope, _ = schedule.unnormalized_cdf(t)
    inner, outer = schedule.log_inner.exp(), schedule.log_outer.exp()
    bias = schedule.bias - inner * torch.linspace(
        -0.08, 1.08, 16, dtype=torch.float64
    )  # four widths of 1/50 beyond each end
    s = torch.sigmoid(bias + t[:, None] * inner)
    plain = t + s @ outer - torch.sigmoid(bias) @ outer, 1 + (s * (1 - s)) @ (inner * outer)
    torch.testing.assert_close((value, slope), plain)
    found, expected = (
        torch.autograd.grad((weights[0] * v + weights[1] * d).sum(), inputs)
        for v, d in ((value, slope), plain)
    )
    torch.testing.assert_close(found, expected)
