"""The shape of a learned schedule follows the variance of the loss, everything else the bound, in
one backward pass."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vdiff import Denoiser, Objective, elbo, hybrid_loss, weighted_elbo
from vdiff.decoder import Categorical
from vdiff.denoiser import ScheduleTime
from vdiff.objective import VLB
from vdiff.parameterization import Eps, V
from vdiff.schedule import Adaptive, Linear, Monotone, Schedule, Shifted, Spline
from vdiff.schedule.learned import Learned
from vdiff.variance import LearnedRange
from vdiff.weighting import MSE, Sigmoid

from .learned_objectives import LEVELS, SHAPES, Net, draws
from .reference import gmm1d, line_nodes, panels

shapes = pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES)


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
