"""A check that autograd sees all of a network: vector–Jacobian products against differences.

Autograd misses a part of a network under `torch.no_grad`, behind `.detach()` or `.data`, in numpy,
or with a wrong backward pass of its own. Without a check, the divergence would be wrong, and no
error would show it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vdiff._precision import to_float64
from vdiff.errors import InvalidValue
from vdiff.gaussian import diffuse, per_example
from vdiff.times import generator_of

STEPS, AGREE = (1e-3, 1e-4), 0.01  # of the size of z; the share of a change that may be missed
NOISE = 3.0  # a share below so many differences of the two steps may be a kink or rounding
REACH, PIECES, ROUGHLY = 0.5, 8, 0.05  # the line that averages these out, and its tolerance
EXAMPLES = 8  # enough for sure averages
HALF = 2**-8  # the rounding of an output in bfloat16
SURE, CLEAR = 9.0, 25.0  # squared standard errors: the mean over examples, and the most of one

Function = Callable[[Tensor], Tensor]
HINT = "no_grad, inference_mode, detach, .data, numpy or rounding in it, or a wrong backward pass"


def check_gradient(function: Function, x: Tensor, logsnr: Tensor) -> int:
    """Raise if the gradient of `function` misses part of its changes. Returns its evaluations.

    At z = α x + σ ε, with a random direction p and random signs w, wᵀJ p by a backward pass is
    compared with central differences of wᵀf at two step sizes. If both differ from it by more than
    1 % and agree with each other, the gradient is wrong, in the mean or for one example. If they
    disagree, because of kinks (ReLU) or rounding (bfloat16), a longer line along p is divided into
    pieces. On each, wᵀf changes by the mean of wᵀJ p, up to kinks and rounding, which have no
    common sign. The gradient is wrong if it misses more than 5 % over all pieces and more than
    three of their standard errors. Only two points that agree, for the same example where it is
    one, raise an error.

    It takes 3 to 28 evaluations. `x` should have at least 8 rows.

    Raises:
        ValueError: with the share that is missed, or with the reason why there is no gradient.

    >>> x, logsnr = torch.ones(8, 2, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    >>> check_gradient(torch.sin, x, logsnr)
    3
    >>> check_gradient(lambda z: torch.sin(z) + torch.sin(z).detach(), x, logsnr)
    Traceback (most recent call last):
        ...
    vdiff.errors.InvalidValue: argument 'model' must be differentiable in z; got a gradient ...
    """
    evaluations, share = 0, torch.ones(len(x) + 1, device="cpu")
    for number in range(2):
        point = _Point(function, x, logsnr, number)
        share = point.missed().cpu() * (share > 0)
        evaluations += point.evaluations
        if not share.any():
            return evaluations
    rows = share[:-1][share[:-1] > 0]
    missed = rows.mean().item() if len(rows) else share[-1].item()
    where = f" in {len(rows)} of {len(x)} examples" if 0 < len(rows) < len(x) else ""
    raise _refused(f"a gradient that misses about {missed:.0%} of how the output changes{where}")


class _Point:
    """A point z, a direction p, and signs w."""

    def __init__(self, function: Function, x: Tensor, logsnr: Tensor, number: int) -> None:
        self.function, self.evaluations = function, 0
        draws = generator_of(0, number, "gradient")
        noise, p = torch.randn(2, *x.shape, generator=draws, dtype=torch.float64).to(x)
        self.z = diffuse(x, noise, logsnr)
        self.p = p * per_example(self.z.flatten(1).square().mean(1).sqrt(), p)
        self.w = torch.randint(0, 2, x.shape, generator=draws).to(x) * 2 - 1

    def missed(self) -> Tensor:
        """The share of the output's change that the gradient misses, for each example and then in
        the mean; 0 where that is not sure."""
        product, slopes = None, []
        for step in STEPS:
            ends = torch.stack([self.z - step * self.p, self.z + step * self.p])
            outputs = torch.stack([self._output(end) for end in ends])
            product = self._product(self.z)[1] if product is None else product
            missed, size = self._missed(ends, outputs, product[None])
            shares = (missed.abs() / size).nan_to_num()[0]
            if size.all() and (shares <= AGREE).all():
                return shares.new_zeros(len(shares) + 1)
            slopes.append(outputs.diff(dim=0)[0].flatten(1) / step)
        apart = (slopes[0] - slopes[1]).norm(dim=1) / slopes[1].norm(dim=1)
        apart = apart.nan_to_num(nan=1.0)
        # a mean averages the noise of kinks out, and one example that agrees has none
        shares, apart = (torch.cat([v, v.mean()[None]]) for v in (shares, apart))
        surely = shares > (NOISE * apart).clamp(min=AGREE)
        found = torch.where(surely, shares, 0.0)
        if not surely[-1] and not (size.all() and shares[-1] <= AGREE):
            found[-1] = self._missed_on_a_line()
        return found

    def _missed_on_a_line(self) -> float:
        line = [self.z + REACH * (2 * i / PIECES - 1) * self.p for i in range(PIECES + 1)]
        outputs, products = map(torch.stack, zip(*map(self._product, line), strict=True))
        means = 0.5 * (products[1:] + products[:-1])
        missed, size = self._missed(torch.stack(line), outputs, means)
        share = (missed.sum(0).abs() / size.sum(0)).nan_to_num().mean().item()
        rounded = HALF * outputs.flatten(2).norm(dim=2).mean(0)
        errors = missed.sum(0).square() / (PIECES * missed.var(0) + rounded.square())
        surely = errors.nan_to_num().clamp(max=CLEAR).mean().item()
        return share if share > ROUGHLY and surely > SURE else 0.0

    def _missed(self, line: Tensor, outputs: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
        """wᵀ(Δf − J Δz) of each piece of a line and each example, and the size of Δf."""
        dz, df = to_float64(line).diff(dim=0), outputs.diff(dim=0)
        along = (products * dz).flatten(2).sum(2)
        change = (to_float64(self.w) * df).flatten(2).sum(2)
        return change - along, torch.maximum(along.abs(), df.flatten(2).norm(dim=2))

    def _output(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        with torch.no_grad():
            return to_float64(self.function(z))

    def _product(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f and wᵀJ at z."""
        self.evaluations += 1
        try:
            with torch.enable_grad():
                z = z.clone().requires_grad_()
                out = self.function(z)
                product = torch.zeros_like(z)
                if out.requires_grad:
                    (product,) = torch.autograd.grad(out, z, self.w, materialize_grads=True)
            return to_float64(out.detach()), to_float64(product)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # without a gradient it has just worked
            raise _refused(str(error).splitlines()[0]) from error


def _refused(got: str) -> InvalidValue:
    return InvalidValue("model", "be differentiable in z", got, HINT)
