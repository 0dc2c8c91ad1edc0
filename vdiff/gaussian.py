"""The Gaussian diffusion in one coordinate, the log signal-to-noise ratio λ.

z = α x + σ ε with λ = log α²/σ², variance preserving: α² = sigmoid(λ), σ² = sigmoid(−λ). Any other
process (variance exploding, rectified flow) is this one rescaled, and given λ nothing else
changes. Every quantity comes from λ through `sigmoid`, `expm1` and `softplus`, never as one minus
another.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vdiff._validate import validated
from vdiff.errors import InvalidValue, has_values

HALF = {torch.float16, torch.bfloat16}
ENDS = "fixed_ends"  # in a state dict: (λ_max, λ_min)
PURE = -600.0  # stands for λ = −∞ where it is computed with: α is 1e-130, and float64 holds e^600


def copy_values(value: Any, memo: dict[Any, Any]) -> Any:
    """`copy.deepcopy` for tensors of a live graph too: their values, detached, for torch copies no
    graph.

    >>> weight = torch.ones(1, requires_grad=True)
    >>> copy_values((2 * weight,), {})
    (tensor([2.]),)
    """
    if isinstance(value, Tensor) and not value.is_leaf:
        return memo.setdefault(id(value), value.detach().clone())
    if type(value) is tuple:
        return tuple(copy_values(one, memo) for one in value)
    return copy.deepcopy(value, memo)


class ValuesCopied:
    """An object of tensors whose deep copy has their values, without the graph they are part
    of."""

    def __deepcopy__(self, memo: dict[Any, Any]) -> "ValuesCopied":
        made = object.__new__(type(self))
        vars(made).update({name: copy_values(value, memo) for name, value in vars(self).items()})
        return made


def float64_for(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no float64 (MPS): the precision of all λ
    arithmetic."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_float64(v: Tensor) -> Tensor:
    """A vector in the precision of all λ arithmetic, float64."""
    return v.to(float64_for(v.device))


def as_float64(v: Tensor | float, device: torch.device) -> Tensor:
    """A number as a tensor in that precision, without a detour through float32."""
    return torch.as_tensor(v, dtype=float64_for(device), device=device)


def device_of(module: object) -> torch.device:
    """Where a module keeps its parameters and buffers; the CPU if it has none."""
    tensors = [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `nn.Module._apply` as a move between devices alone: λ and log-probabilities do not
    survive half precision.

    What a device cannot hold (float64 on MPS) stays where it is, with a warning.
    """

    def move(v: Tensor) -> Tensor:
        try:
            moved = fn(v)
            return moved if moved.dtype == v.dtype else v.to(moved.device)
        except TypeError as error:
            if v.dtype != torch.float64 or "float64" not in str(error):
                raise
            warnings.warn(
                f"the device has no float64: a tensor of shape {tuple(v.shape)} stays on {v.device}",
                stacklevel=2,
            )
            return v

    return move


class RestorableModule(nn.Module):
    """A module whose `reset_parameters` restores the values of construction, for instance after
    `to_empty`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constructed: dict[str, Tensor] = {}

    def register_constructed(
        self, name: str, tensor: Tensor | None, persistent: bool = True
    ) -> None:
        """Register a buffer whose first values are to be restored."""
        if tensor is not None and tensor.device.type != "meta":
            self._constructed[name] = tensor.detach().clone().cpu()
        self.register_buffer(name, tensor, persistent)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restore the values of construction of all parameters and buffers, in place."""
        for name, value in self._constructed.items():
            getattr(self, name).copy_(value)
        for child in self.children():
            if isinstance(child, RestorableModule):
                child.reset_parameters()


class PreciseModule(RestorableModule):
    """A module that keeps its dtypes, has tensors of its own process, and knows the log-SNRs that
    its state belongs to.

    `register_local` keeps a tensor that moves and is saved as a buffer, but is no buffer: DDP
    copies the buffers of rank 0 to all ranks in every forward, and would overwrite what the others
    have observed since their last update. The state dict also holds `fixed_ends`, (λ_max, λ_min).
    A state of other ends is refused; one without ends is taken.
    """

    fixed_ends = torch.empty(0, device="cpu")  # torch looks for every name of a state dict

    def __init__(self) -> None:
        super().__init__()
        self._local: tuple[str, ...] = ()

    def register_local(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor of this process alone."""
        self._local = (*self._local, name)
        setattr(self, name, tensor)

    def ends_in(self, state: dict[str, Any], prefix: str) -> Tensor | None:
        """(λ_max, λ_min) of a state; None where it does not say."""
        return state.get(prefix + ENDS)

    def own_ends(self) -> tuple[float, float] | None:
        """(λ_max, λ_min) to save; None where the state has them already, or there are none."""
        return None

    def ends_with(self, state: dict[str, Any], prefix: str) -> tuple[float, float] | None:
        """(λ_max, λ_min) of this module once it holds a state; None where it takes what comes."""
        return self.own_ends()

    @contextmanager
    def _local_as_buffers(self) -> Iterator[None]:
        for name in self._local:
            self._buffers[name] = vars(self).pop(name)
        try:
            yield
        finally:
            for name in self._local:
                vars(self)[name] = self._buffers.pop(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PreciseModule":
        with self._local_as_buffers():
            super()._apply(keep_dtype(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        with self._local_as_buffers():
            super()._save_to_state_dict(destination, prefix, keep_vars)
            place = next((v.device for v in (*self.parameters(), *self.buffers())), None)
        ends = self.own_ends()
        if place is not None and ends is not None:
            destination[prefix + ENDS] = torch.tensor(ends, dtype=float64_for(place), device=place)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, unexpected, errors = args
        with self._local_as_buffers():
            super()._load_from_state_dict(state, prefix, *args)
            stateful = next((True for _ in (*self.parameters(), *self.buffers())), False)
        if not stateful:
            return
        if prefix + ENDS in unexpected:
            unexpected.remove(prefix + ENDS)
        saved, own = self.ends_in(state, prefix), self.ends_with(state, prefix)
        if saved is None or own is None or not has_values(saved):
            return
        rounded = torch.tensor(own, dtype=torch.float64, device="cpu").to(saved.dtype)
        if not torch.allclose(saved.detach().cpu(), rounded, rtol=1e-6, atol=1e-6):
            hint = "make this module with the ends of the state"
            what = f"have the ends of this module, λ_max = {own[0]:g} and λ_min = {own[1]:g}"
            came = f"λ_max = {saved[0]:g} and λ_min = {saved[1]:g}"
            wrong = InvalidValue("state_dict", what, came, hint)
            wrong.function = f"{type(self).__name__}.load_state_dict"
            errors.append(str(wrong))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 where it is narrower: λ is never in half precision."""
    return dtype if dtype == torch.float64 else torch.float32


def per_example(v: Tensor | float, x: Tensor) -> Tensor | float:
    """A (batch,) vector in the dtype of `x` and ready to broadcast over it; a number passes
    through."""
    if not isinstance(v, Tensor) or v.ndim == 0:
        return v if not isinstance(v, Tensor) else v.to(x.dtype)
    return v.to(x.dtype).view(-1, *(1 for _ in range(x.ndim - 1)))


def combine(a: Tensor | float, x: Tensor, b: Tensor | float, y: Tensor) -> Tensor:
    """a·x + b·y with coefficients per example; a coefficient that is the number 0 or 1 costs
    nothing."""
    if isinstance(a, float) and a == 0.0:
        return y if isinstance(b, float) and b == 1.0 else per_example(b, y) * y
    if isinstance(b, float) and b == 0.0:
        return x if isinstance(a, float) and a == 1.0 else per_example(a, x) * x
    left = x if isinstance(a, float) and a == 1.0 else per_example(a, x) * x
    if isinstance(b, float):
        return torch.add(left, y, alpha=b)
    return torch.addcmul(left, torch.as_tensor(per_example(b, y)), y)


def sum_dims(x: Float[Tensor, "batch *dims"]) -> Float[Tensor, " batch"]:
    """Sum over everything but the batch."""
    return x.flatten(1).sum(1)


def alpha(logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The signal's scale, α = √sigmoid(λ).

    >>> alpha(torch.tensor(0.0))
    tensor(0.7071)
    """
    return logsnr.sigmoid().sqrt()


def sigma(logsnr: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The noise's scale, σ = √sigmoid(−λ), to full relative accuracy where 1 − α² would be zero.

    >>> sigma(torch.tensor(20.0))
    tensor(4.5400e-05)
    """
    return logsnr.neg().sigmoid().sqrt()


@validated
def diffuse(
    x: Float[Tensor, "batch *dims"],
    eps: Float[Tensor, "batch *dims"],
    logsnr: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *dims"]:
    """The noisy z = α x + σ ε at each example's λ.

    >>> diffuse(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1))
    tensor([[0.7071, 0.7071]])
    """
    return combine(alpha(logsnr), x, sigma(logsnr), eps)


@dataclass(frozen=True)
class Step(ValuesCopied):
    """One step of a chain from λ_t to λ_s > λ_t (towards data), and what the posterior q(z_s |
    z_t, x) is made of.

    With Δ = λ_s − λ_t and c = −expm1(−Δ), in any process with the same λ,

        q(z_s | z_t, x) = N( α_s (e^{−Δ} z_t/α_t + c x),  c σ_s² )

    `delta` is given by the schedule, in float64: the difference of two float32 λ is off by 6e-5 at
    T = 1000.

    >>> step = Step(torch.tensor([0.0]), torch.tensor([1.0]))
    >>> step.snr_gain                                       # expm1(Δ): the weight of ½‖ε − ε̂‖² in the step's KL
    tensor([1.7183])
    """

    logsnr_t: Tensor
    delta: Tensor

    @property
    def logsnr_s(self) -> Tensor:
        """λ_s, the less noisy end."""
        return self.logsnr_t + self.delta

    @property
    def fresh(self) -> Tensor:
        """c = 1 − e^{−Δ}: the share of the step that comes from x̂ rather than from z."""
        return -torch.expm1(-self.delta)

    @property
    def snr_gain(self) -> Tensor:
        """k = SNR_s/SNR_t − 1 = expm1(Δ)."""
        return torch.expm1(self.delta)

    @property
    def coefficient_z(self) -> Tensor:
        """Of z_t in the posterior's mean, written with x: α_s e^{−Δ}/α_t = σ_s²/α_s · α_t/σ_t²."""
        log_alpha_ratio = F.logsigmoid(self.logsnr_s) - F.logsigmoid(self.logsnr_t)
        return torch.exp(0.5 * log_alpha_ratio - self.delta)

    @property
    def coefficient_x(self) -> Tensor:
        """Of x in the posterior's mean: α_s c."""
        return alpha(self.logsnr_s) * self.fresh

    @property
    def coefficient_eps(self) -> Tensor:
        """Of −ε in the posterior's mean written as (α_s/α_t) z_t − coefficient · ε: (α_s/α_t) c
        σ_t."""
        return alpha(self.logsnr_s) * self.fresh * torch.exp(-0.5 * self.logsnr_t)

    @property
    def variance(self) -> Tensor:
        """c σ_s², the posterior's ("small", β̃)."""
        return self.fresh * torch.sigmoid(-self.logsnr_s)

    @property
    def forward_variance(self) -> Tensor:
        """c σ_t², the forward step's ("large", β)."""
        return self.fresh * torch.sigmoid(-self.logsnr_t)

    @property
    def log_variance_ratio(self) -> Tensor:
        """ℓ = log(forward variance / posterior variance) = log1p(k·sigmoid(λ_t)), without
        cancellation."""
        return torch.log1p(self.snr_gain * torch.sigmoid(self.logsnr_t))

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        """The mean of q(z_s | z_t, x), or of p(z_s | z_t) where x is the model's x̂."""
        return combine(self.coefficient_z, z, self.coefficient_x, x)

    def noise_s(self, eps: Tensor, noise: Tensor) -> Tensor:
        """The ε_s of z_s = α_s x + σ_s ε_s ~ q(z_s | z_t, x), from z_t's ε and fresh noise:
        e^{−Δ/2} ε + √c n."""
        return combine(torch.exp(-0.5 * self.delta), eps, self.fresh.sqrt(), noise)


@dataclass(frozen=True)
class StepToData(Step):
    """The step from z₀ to data itself, λ_s = ∞, whose posterior's variance, zero, is clipped to
    `clip` as in iDDPM.

    >>> step = StepToData(torch.tensor([0.0]), clip=0.05)
    >>> step.variance, step.forward_variance, step.log_variance_ratio.exp()
    (tensor([0.0500]), tensor([0.5000]), tensor([10.]))
    """

    delta: Tensor = field(init=False)
    clip: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "delta", torch.full_like(self.logsnr_t, math.inf))

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.logsnr_t, self.clip)

    @property
    def log_variance_ratio(self) -> Tensor:
        return F.logsigmoid(-self.logsnr_t) - math.log(self.clip)


def step_kl(
    snr_gain: Tensor, squared_error: Tensor, u: Tensor | float = 0.0, dims: int = 1
) -> Tensor:
    """KL(q(z_s | z_t, x) ‖ p(z_s | z_t)) in nats, for a reverse variance e^u times the
    posterior's.

        K = ½ [ d·(u + expm1(−u)) + e^{−u} k ‖ε − ε̂‖² ]

    At u = 0 it is the ELBO's ½ k ‖ε − ε̂‖² and no term is a difference. `squared_error` is summed
    over the `dims` dimensions that share `u`.

    >>> step_kl(torch.tensor(0.1), torch.tensor(2.0))
    tensor(0.1000)
    """
    if isinstance(u, float) and u == 0.0:
        return 0.5 * snr_gain * squared_error
    u = torch.as_tensor(u)
    return dims * spread_kl(u) + 0.5 * torch.exp(-u) * snr_gain * squared_error


def spread_kl(u: Tensor) -> Tensor:
    """½ (u + expm1(−u)): what a variance e^u times too large adds to a KL in each dimension, nats.

    >>> spread_kl(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.1839])
    """
    return 0.5 * (u + torch.expm1(-u))


@validated
def prior_kl(
    x: Float[Tensor, "batch *dims"], logsnr_min: Tensor | float
) -> Float[Tensor, " batch"]:
    """KL(q(z₁ | x) ‖ N(0, I)) of the variance preserving process, nats per example.

        ½ [ sigmoid(λ_min)(‖x‖² − d) + d·softplus(λ_min) ]

    in float64 but for ‖x‖², so that d (softplus − sigmoid), which is tiny at low λ_min, keeps its
    digits down to −20 and is below the signal's term where it does not.

    >>> prior_kl(torch.ones(1, 2), -5.0)
    tensor([0.0067])
    """
    snr: Tensor | float
    if isinstance(logsnr_min, Tensor):
        snr = torch.exp(logsnr_min.to(float64_for(x.device)))
        softplus: Tensor | float = torch.log1p(snr)
    else:  # a number needs no tensor arithmetic
        snr = math.exp(logsnr_min)
        softplus = math.log1p(snr)
    signal = snr / (1 + snr)
    slack = softplus - signal  # KL of the variances alone: ½d of it
    square = sum_dims(x.to(at_least_float32(x.dtype)).square())
    return (0.5 * signal * square + (0.5 * x[0].numel()) * slack).to(square.dtype)


def kl_to_normal(
    mean_square: Tensor | float,
    variance: Tensor | float,
    prior_variance: Tensor | float = 1.0,
    dims: int = 1,
) -> Tensor:
    """KL(N(μ, v I) ‖ N(0, s I)) in nats from ‖μ‖² = `mean_square`: the prior term of any other
    process.

        ½ [ d (r − 1 − log r) + ‖μ‖²/s ],  r = v/s

    >>> kl_to_normal(0.64, 6400.0, 6400.25)                # variance exploding, σ_max = 80, prior N(0, σ_max² + ¼)
    tensor(4.9998e-05, dtype=torch.float64)
    """
    square, v, s = (
        torch.as_tensor(a, dtype=torch.float64) for a in (mean_square, variance, prior_variance)
    )
    excess = (v - s) / s
    log_ratio = torch.where(excess.abs() < 0.5, torch.log1p(excess), v.log() - s.log())
    return 0.5 * (dims * (excess - log_ratio) + square / s)


@validated
def bits_per_dim(nats: Tensor, dims: int, bin_width: float | None = None) -> Tensor:
    """Nats per example as bits per dimension, nats/(d ln 2).

    For a density on continuous data, `bin_width` (2/255 or 2/256 for bytes on [−1, 1]) turns it
    into the bits of data quantised to bins of that width: −log₂(bin_width) more.

    >>> bits_per_dim(torch.tensor(100.0), 3072)
    tensor(0.0470)
    """
    bits = nats / (dims * math.log(2))
    return bits if bin_width is None else bits - math.log2(bin_width)


__all__ = [
    "Step",
    "StepToData",
    "alpha",
    "bits_per_dim",
    "diffuse",
    "kl_to_normal",
    "prior_kl",
    "sigma",
    "spread_kl",
    "step_kl",
]
