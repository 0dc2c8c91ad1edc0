"""The published losses of other libraries on the same network and data, for loss_overhead.py.

    python -m pip install --no-deps --target .peers --requirement benchmarks/peers.txt
    python benchmarks/loss_overhead.py --threads 1 --peers .peers

A folder of their own: what they need for images, logging or many GPUs is not installed. Modules of
which a loss calls nothing get a stand-in while a library is imported. What does not import even so
is listed as missing.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], Tensor]


def torchcfm(network: nn.Module, x: Tensor) -> Step:
    module = importlib.import_module("torchcfm")
    matcher = module.ConditionalFlowMatcher(sigma=0.0)

    def step() -> Tensor:
        t, z, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (network(z, t) - velocity).square().mean()

    return step


def flow_matching(network: nn.Module, x: Tensor) -> Step:
    module = importlib.import_module("flow_matching.path")
    scheduler = importlib.import_module("flow_matching.path.scheduler").CondOTScheduler()
    path = module.AffineProbPath(scheduler=scheduler)

    def step() -> Tensor:
        at = path.sample(t=torch.rand(len(x)), x_0=torch.randn_like(x), x_1=x)
        return (network(at.x_t, at.t) - at.dx_t).square().mean()

    return step


def diffusers(network: nn.Module, x: Tensor) -> Step:
    scheduler = importlib.import_module("diffusers").DDPMScheduler(num_train_timesteps=1000)

    def step() -> Tensor:
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        return F.mse_loss(network(scheduler.add_noise(x, noise, t), t.float()), noise)

    return step


def k_diffusion(network: nn.Module, x: Tensor) -> Step:
    module = importlib.import_module("k_diffusion")
    model = module.layers.Denoiser(network, sigma_data=0.5)
    density = partial(module.utils.rand_log_normal, loc=-1.2, scale=1.2)

    def step() -> Tensor:
        loss: Tensor = model.loss(x, torch.randn_like(x), density([len(x)]))
        return loss.mean()

    return step


class _Row(nn.Module):
    """A network of points for a library that knows rows of channels."""

    channels, self_condition = 1, False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, t: Tensor, *_: object) -> Tensor:
        out: Tensor = self.network(z[:, 0], t.float())
        return out[:, None]


def denoising_diffusion_pytorch(network: nn.Module, x: Tensor) -> Step:
    module = importlib.import_module("denoising_diffusion_pytorch")
    model = module.GaussianDiffusion1D(
        _Row(network), seq_length=x.shape[-1], objective="pred_noise"
    )
    row = x[:, None]
    return lambda: model(row)


PEERS: dict[str, tuple[Callable[[nn.Module, Tensor], Step], str, str]] = {
    "torchcfm": (torchcfm, "flow matching", "ot"),
    "flow-matching": (flow_matching, "flow matching", ""),
    "diffusers": (diffusers, "DDPM", ""),
    "k-diffusion": (
        k_diffusion, "EDM",
        "accelerate clean_fid cleanfid clip dctorch jsonmerge kornia resize_right skimage "
        "torchsde torchvision",
    ),
    "denoising-diffusion-pytorch": (
        denoising_diffusion_pytorch, "DDPM", "accelerate ema_pytorch torchvision"
    ),
}  # with the loss, and what a stand-in replaces where it is not installed  # fmt: skip


class _StandIns:
    """Finds modules that are not installed and of which nothing is called."""

    def __init__(self, names: str) -> None:
        self.names = [name for name in names.split() if find_spec(name) is None]

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        known = name.partition(".")[0] in self.names
        return ModuleSpec(name, self, is_package=True) if known else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> MagicMock:
        return MagicMock(__path__=[], __spec__=spec, __name__=spec.name, __version__="0")

    def exec_module(self, module: MagicMock) -> None:
        pass


@contextmanager
def stand_ins(names: str) -> Iterator[None]:
    finder, before = _StandIns(names), set(sys.modules)
    sys.meta_path.append(finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]


def steps(network: nn.Module, x: Tensor, folder: Path) -> tuple[dict[str, Step], list[str]]:
    """The steps of the peers in a folder by name, and why others are missing."""
    sys.path.append(str(folder.resolve()))  # behind our own torch
    found, missing = dict[str, Step](), list[str]()
    for name, (make, loss, names) in PEERS.items():
        try:
            with stand_ins(names):
                found[f"{name} {version(name)}, {loss}"] = make(network, x)
        except Exception as error:
            missing.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return found, missing
