"""A model in torch's own containers: exported, saved, mapped over and taken apart."""

import io
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_map, tree_unflatten

from vdiff import Denoiser, Objective, Prediction, elbo
from vdiff.bound import Bound
from vdiff.decoder import Categorical
from vdiff.denoiser import ScaledGamma, ScheduleTime, TableStep, edm_time
from vdiff.nn import UNet
from vdiff.objective import VLB
from vdiff.parameterization import (
    Eps,
    Flow,
    Parameterization,
    PosteriorMean,
    V,
    VarianceExploding,
    X,
)
from vdiff.sampling import Clipped
from vdiff.schedule import Cosine, Linear, Tabulated
from vdiff.variance import LearnedRange

from .common import Net, batch, model

TABLE = Tabulated.linear_betas()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, z: Tensor, time: Tensor) -> Tensor:
        out = self.net(z, time)
        return torch.cat([out, 0.1 * out], 1)


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.embedding = Net(), nn.Embedding(1000, 2)

    def forward(self, z: Tensor, step: Tensor) -> Tensor:
        return self.net(z, step / 1000) + self.embedding(step)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "v": model,
    "σ_data": lambda: model(V(0.5)),
    "EDM": lambda: Denoiser(Net(), VarianceExploding(X()), time=edm_time, output=torch.neg),
    "flow, γ": lambda: Denoiser(
        Net(), Flow(), time=ScaledGamma(logsnr_max=10.0, logsnr_min=-10.0)
    ),
    "ε, a schedule's time": lambda: Denoiser(Net(), Eps(), time=ScheduleTime(Cosine())),
    "ε, a table's step": lambda: Denoiser(Steps(), Eps(), time=TableStep(TABLE, integer=True)),
    "ε, learned variance": lambda: Denoiser(TwoHeads(), Eps(), variance=LearnedRange()),
    "clipped": lambda: Clipped(model()),
}


def exported(module: nn.Module, z: Tensor, logsnr: Tensor) -> torch.export.ExportedProgram:
    size = torch.export.Dim("batch")
    return torch.export.export(module, (z, logsnr), dynamic_shapes=({0: size}, {0: size}))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_exported_and_saved(name: str) -> None:
    one = MODELS[name]().eval()
    program = exported(one, batch()[0], torch.linspace(-3, 3, 4))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    z, logsnr = batch(7, seed=1)[0], torch.linspace(-5, 5, 7)
    expected = one(z, logsnr)
    for made in (program.module(), torch.export.load(file).module()):
        got = made(z, logsnr)
        assert isinstance(got, Prediction)
        assert repr((got.parameterization, got.variance, got.source)) == repr(
            (expected.parameterization, expected.variance, expected.source)
        )
        for part in ("x", "eps", "v", "score"):
            torch.testing.assert_close(
                getattr(got, part), getattr(expected, part), rtol=1e-5, atol=1e-5
            )
        assert (got.variance_output is None) == (expected.variance_output is None)
        if got.variance_output is not None:
            torch.testing.assert_close(got.variance_output, expected.variance_output)


def test_a_network_for_images_is_exported() -> None:
    one = Denoiser(UNet(1, width=8, multipliers=(1,)), V()).eval()
    z, logsnr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    got = torch.export.export(one, (z, logsnr)).module()(z, logsnr)
    torch.testing.assert_close(got.x, one(z, logsnr).x)


class Own(Parameterization):
    """Of a user."""

    def __init__(self, scale: float, inner: Parameterization) -> None:
        self.scale, self.inner = scale, inner

    def row(self, logsnr: Tensor) -> tuple[Tensor | float, Tensor | float]:
        a, b = self.inner.row(logsnr)
        return self.scale * a, self.scale * b


def test_a_target_of_ones_own_is_saved_and_one_with_a_schedule_is_refused() -> None:
    z, logsnr = batch()[0], torch.zeros(4)
    file = io.BytesIO()
    torch.export.save(exported(model(Own(2.0, V())), z, logsnr), file)  # type: ignore[arg-type]
    file.seek(0)
    got = torch.export.load(file).module()(z, logsnr)
    torch.testing.assert_close(got.x, model(Own(2.0, V()))(z, logsnr).x)  # type: ignore[arg-type]
    program = exported(model(PosteriorMean(Linear(), steps=10)), z, logsnr)
    torch.testing.assert_close(
        program.module()(z, logsnr).x, model(PosteriorMean(Linear(), steps=10))(z, logsnr).x
    )
    with pytest.raises(
        TypeError,
        match="a Prediction is saved with targets and variances made of numbers, not Linear",
    ):
        torch.export.save(program, io.BytesIO())


def test_a_class_that_is_not_there_is_not_imported(tmp_path: object) -> None:
    file = io.BytesIO()
    torch.export.save(exported(model(Own(2.0, V())), batch()[0], torch.zeros(4)), file)  # type: ignore[arg-type]
    path = f"{tmp_path}/model.pt2"
    with open(path, "wb") as written:
        written.write(file.getvalue())
    code = f"import torch, vdiff\ntorch.export.load({path!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 1
    assert (
        "a saved Prediction holds the class faults.test_export.Own: import its module first"
        in out.stderr
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_prediction_is_a_pytree_of_its_tensors(name: str) -> None:
    one = MODELS[name]().eval()
    said = one(batch()[0], torch.linspace(-3, 3, 4))
    leaves, spec = tree_flatten(said)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert len(leaves) == (3 if said.variance_output is None else 4)
    assert [str(key[0]) for key, _ in tree_flatten_with_path(said)[0]] == [
        ".z",
        ".logsnr",
        ".output",
        ".variance_output",
    ][: len(leaves)]
    same = tree_unflatten(leaves, spec)
    assert vars(same) == vars(said)
    wide = tree_map(lambda v: v.double(), said)
    assert (type(wide), wide.x.dtype, wide.parameterization) == (
        Prediction,
        torch.float64,
        said.parameterization,
    )
    assert tree_map(lambda v: None, said).z is None  # leaves need not be tensors
    assert vars(said.replace(output=said.output)) == vars(said)


def test_a_model_is_mapped_over() -> None:
    one, (z, t, _) = model(), batch()
    together = one(z, t)
    apart = torch.vmap(one)(z[:, None], t[:, None])
    torch.testing.assert_close(apart.output[:, 0], together.output)
    assert apart.parameterization is one.parameterization


@pytest.mark.parametrize("steps", [None, 4])
def test_a_bound_is_a_pytree(steps: int | None) -> None:
    bound = elbo(
        model(),
        torch.randint(0, 17, (4, 2)),
        schedule=Linear(),
        decoder=Categorical(17),
        steps=steps,
        draws=2,
    )
    leaves, spec = tree_flatten(bound)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert tree_unflatten(leaves, spec) == bound
    doubled = tree_map(lambda v: 2 * v, bound)
    assert (type(doubled), doubled.dims) == (Bound, 2)
    assert torch.equal(doubled.total, 2 * bound.total)
    if steps is not None:
        assert torch.equal(doubled.drawn.terms[0], 2 * bound.drawn.terms[0])
        assert doubled.drawn.steps == 4

    class Bounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.objective = Objective(
                model(), schedule=Linear(), loss=VLB(Categorical(17), steps=steps)
            )

        def forward(self, data: Tensor, t: Tensor, eps: Tensor) -> Bound:
            return self.objective.bound(data, t=t, eps=eps)

    given = torch.randint(0, 17, (4, 2)), torch.full((4,), 0.75), torch.randn(4, 2)
    module, file = Bounding(), io.BytesIO()
    expected = module(*given)  # once, so that the decoder's table is there
    torch.export.save(torch.export.export(module, given), file)
    file.seek(0)
    got = torch.export.load(file).module()(*given)
    torch.testing.assert_close(got.total, expected.total)
    assert (got.drawn is None) == (steps is None)
