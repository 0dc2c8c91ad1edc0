"""Faults 6 to 10: batches, shapes, layouts and devices of data."""

import pytest
import torch
from registry import TARGETS
from torch import Tensor

from vdiff import elbo, weighted_elbo
from vdiff.decoder import Categorical, DiscretizedGaussian, Gaussian
from vdiff.schedule import LearnedLinear
from vdiff.times import stratified
from vdiff.weighting import Sigmoid

from .common import (
    SCHEDULE,
    assert_refused,
    assert_refused_with,
    assert_same,
    batch,
    loss_of,
    model,
)


def test_fault_06_empty_batch() -> None:
    with assert_refused_with(
        ValueError,
        "weighted_elbo: x must hold at least one example .. shape (0, 2) "
        "(an empty batch has no mean)",
    ):
        loss_of(torch.zeros(0, 2))
    with assert_refused(
        ValueError, "Categorical.encode", "data", "hold at least one example", "shape (0, 2)"
    ):
        elbo(
            model(),
            torch.zeros(0, 2, dtype=torch.long),
            schedule=SCHEDULE,
            decoder=Categorical(17),
        )
    with assert_refused(ValueError, "Gaussian.encode", "data", "hold at least one example"):
        elbo(model(), torch.zeros(0, 2), schedule=SCHEDULE, decoder=Gaussian())
    with assert_refused(ValueError, "stratified", "batch", "be at least 1"):
        stratified(0)


def test_fault_07_a_batch_of_one() -> None:
    x, t, eps = batch()
    whole = loss_of(x, t=t, eps=eps)
    alone = torch.cat(
        [loss_of(x[i : i + 1], t=t[i : i + 1], eps=eps[i : i + 1]) for i in range(len(x))]
    )
    assert_same(alone, whole)
    drawn = torch.cat(
        [stratified(1, generator=torch.Generator().manual_seed(seed)) for seed in range(400)]
    )
    assert 0 <= drawn.min() < 0.02  # one stratum is the whole interval
    assert 0.98 < drawn.max() < 1
    assert abs(drawn.mean().item() - 0.5) < 4 / (12 * 400) ** 0.5
    assert torch.equal(
        loss_of(x[:1], generator=torch.Generator().manual_seed(3)),
        loss_of(x[:1], generator=torch.Generator().manual_seed(3)),
    )


@pytest.mark.parametrize("shape", [(), (3,)])
def test_fault_08_no_batch_dimension(shape: tuple[int, ...]) -> None:
    words = (
        "have shape (batch, …) with one dimension or more behind the batch",
        f"got {shape}",
        "x[None]",
        "x[:, None]",
    )
    with assert_refused(ValueError, "weighted_elbo", "x", *words):
        loss_of(torch.zeros(shape))
    with assert_refused(ValueError, "Categorical.encode", "data", *words[:2]):
        elbo(
            model(),
            torch.zeros(shape, dtype=torch.long),
            schedule=SCHEDULE,
            decoder=Categorical(17),
        )


@pytest.mark.parametrize("shape", [(3, 24), (3, 24, 1), (3, 2, 12), (3, 2, 3, 4), (3, 2, 2, 3, 2)])
def test_fault_08_any_shape_behind_the_batch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(3, 24, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9])
    levels = torch.randint(0, 17, (3, 24), generator=generator)
    net = lambda z, time: z.tanh() * (1 + 0.1 * time.view(-1, *(1 for _ in z.shape[1:])))  # noqa: E731
    for row in TARGETS.values():
        denoiser = type(model())(net, row)
        flat = weighted_elbo(denoiser, x, schedule=SCHEDULE, weighting=Sigmoid(), t=t, eps=eps)
        assert_same(
            weighted_elbo(
                denoiser,
                x.view(shape),
                schedule=SCHEDULE,
                weighting=Sigmoid(),
                t=t,
                eps=eps.view(shape),
            ),
            flat,
        )
    for decoder in (Categorical(17), DiscretizedGaussian(17)):
        flat = elbo(denoiser, levels, schedule=SCHEDULE, decoder=decoder, t=t, eps=eps).total
        assert_same(
            elbo(
                denoiser,
                levels.view(shape),
                schedule=SCHEDULE,
                decoder=decoder,
                t=t,
                eps=eps.view(shape),
            ).total,
            flat,
        )


def layouts() -> dict[str, Tensor]:
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return {
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.stack([x, x + 1], -1)[..., 0],
        "expanded": x[:1].expand(4, 3, 2, 2),
        "requires_grad": x.clone().requires_grad_(),
        "flipped": x.flip(3),
    }


@pytest.mark.parametrize("layout", list(layouts()))
def test_fault_09_any_memory_layout(layout: str) -> None:
    x = layouts()[layout]
    kept, version = x.detach().clone(), x._version
    eps, t = (
        torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0.1, 0.4, 0.6, 0.9]),
    )
    net = lambda z, time: z.tanh() * time[:, None, None, None].tanh()  # noqa: E731
    for row in TARGETS.values():
        denoiser = type(model())(net, row)
        loss = weighted_elbo(denoiser, x, schedule=SCHEDULE, t=t, eps=eps)
        assert_same(
            loss,
            weighted_elbo(
                denoiser, kept.contiguous(), schedule=SCHEDULE, t=t, eps=eps.contiguous()
            ),
        )
    assert_same(
        elbo(denoiser, x, schedule=SCHEDULE, decoder=Gaussian(), t=t, eps=eps).total,
        elbo(denoiser, kept, schedule=SCHEDULE, decoder=Gaussian(), t=t, eps=eps).total,
    )
    assert x._version == version
    assert torch.equal(x.detach(), kept)


def test_fault_09_a_gradient_reaches_x() -> None:
    x, t, eps = batch(dtype=torch.float64)
    x.requires_grad_()
    net = model().double()
    (slope,) = torch.autograd.grad(weighted_elbo(net, x, schedule=SCHEDULE, t=t, eps=eps).sum(), x)
    step = torch.zeros_like(x)
    step[2, 1] = 1e-6
    with torch.no_grad():
        up, down = (
            weighted_elbo(net, x + sign * step, schedule=SCHEDULE, t=t, eps=eps).sum()
            for sign in (1, -1)
        )
    assert slope[2, 1].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-6)


def test_fault_10_different_devices() -> None:
    x, t, eps = batch()
    with assert_refused_with(
        ValueError,
        "weighted_elbo: eps must be on the device of x, cpu .. got meta (eps = eps.to(x.device))",
    ):
        loss_of(x, eps=eps.to("meta"))
    with assert_refused_with(
        ValueError,
        "weighted_elbo: t must be on the device of x, cpu .. got meta (t = t.to(x.device))",
    ):
        loss_of(x, t=t.to("meta"))
    with assert_refused(
        ValueError, "weighted_elbo", "t", "be on the device of x, meta", "got cpu"
    ):
        loss_of(x.to("meta"), t=t)
    with assert_refused(ValueError, "elbo", "eps", "be on the device of data, cpu", "got meta"):
        elbo(model(), x, schedule=SCHEDULE, decoder=Gaussian(), eps=eps.to("meta"))
    with assert_refused_with(
        ValueError,
        "weighted_elbo: generator must be on the device of x, meta .. got "
        "cpu (torch.Generator(x.device))",
    ):
        loss_of(x.to("meta"), generator=torch.Generator())
    with assert_refused(TypeError, "weighted_elbo", "generator", "be a torch.Generator", "got 3"):
        loss_of(x, generator=3)


def test_fault_10_everything_is_made_on_the_device_of_x() -> None:
    """On the meta device an operation that mixes devices raises, so this is a GPU's test of
    placement on a CPU."""
    x = torch.zeros(4, 2, device="meta")
    for row in TARGETS.values():
        assert (
            weighted_elbo(
                model(row).to("meta"), x, schedule=SCHEDULE, weighting=Sigmoid()
            ).device.type
            == "meta"
        )
        assert (
            weighted_elbo(
                model(row).to("meta"), x, schedule=SCHEDULE, steps=10, t=x[:, 0]
            ).device.type
            == "meta"
        )
    levels = torch.zeros(4, 2, dtype=torch.long, device="meta")
    for decoder in (
        Categorical(17),
        Categorical(17, prior=torch.zeros(17)),
        Categorical(17, prior=torch.zeros(2, 17)),
        DiscretizedGaussian(17),
        DiscretizedGaussian(17, uses_network=True),
    ):
        for schedule in (SCHEDULE, LearnedLinear()):
            bound = elbo(
                model().to("meta"),
                levels,
                schedule=schedule.to("meta"),
                decoder=decoder.to("meta"),
            )
            assert {
                v.device.type for v in (bound.prior, bound.diffusion, bound.reconstruction)
            } == {"meta"}
    assert (
        elbo(
            model().to("meta"), x, schedule=SCHEDULE, decoder=Gaussian(uses_network=True)
        ).total.device.type
        == "meta"
    )
