"""What a first training gets wrong: each is one message at its start, with the likely mistake."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vdiff import Denoiser, Objective, weighted_elbo
from vdiff.data import Images, load_images
from vdiff.data.images import like_pixels
from vdiff.decoder import Categorical, Gaussian
from vdiff.losses import VLB, Weighted
from vdiff.parameterization import V
from vdiff.schedule import Cosine, Linear
from vdiff.training import Config, Run, train
from vdiff.training.loading import fingerprint

CONFIG = Config({"name": "mine.py:Net"}, level_head=False, shape=[1, 6, 6], steps=3, batch=4)
LEVELS = torch.randint(0, 256, (12, 1, 6, 6), generator=torch.Generator().manual_seed(0))
PIXELS = LEVELS / 255  # as ToTensor makes them


class Net(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.layer(z) + t.to(z).view(-1, 1, 1, 1)


def objective(loss: Any = None, network: nn.Module | None = None) -> Objective:
    model = Denoiser(Net() if network is None else network, V())
    return Objective(model, schedule=Linear(9.0, -7.0), loss=loss)


def stored(folder: Path) -> Images:
    np.save(folder / "pixels.npy", PIXELS.numpy())
    return load_images(folder / "pixels.npy")


@pytest.mark.parametrize("kind", ["tensor", "dataset", "stream", "file"])
def test_pixels_in_0_to_1_without_a_decoder_are_said_to_be_a_density(kind, tmp_path):
    kinds = {"tensor": PIXELS, "dataset": TensorDataset(PIXELS), "file": stored(tmp_path)}
    data = kinds.get(kind, iter(list(PIXELS) * 3))
    with pytest.warns(UserWarning, match=r"floating numbers in \[0, 1\].* density.*255") as heard:
        train(objective(), data, CONFIG, quiet=True)
    assert len(heard) == 1


@pytest.mark.parametrize(
    ("values", "range_"),
    [
        ([0.0, 0.3, 1.0], "[0, 1]"),
        ([-1.0, 1 / 127.5 - 1, 1.0], "[-1, 1]"),
        ([0.0, 3.0, 255.0], "[0, 255]"),
        ([0.0, 3.0, 256.0], ""),
        ([0.0, 3.5, 255.0], ""),
        ([0.0, 1.0, 5.0], ""),  # counts
        ([-1.0, 0.3, 1.0], ""),
    ],
)
def test_ranges_of_pixels(values, range_):
    assert like_pixels(torch.tensor(values).repeat(100)) == range_


def test_bytes_that_are_floats_are_said_to_be_a_density():
    with pytest.warns(UserWarning, match=r"\[0, 255\].* levels are x\.round\(\)\.to\(torch.uint8"):
        train(objective(), LEVELS.float(), CONFIG, quiet=True)


@pytest.mark.parametrize(
    ("data", "loss"),
    [
        (PIXELS, VLB(Gaussian())),
        (PIXELS, Weighted(decoder=Gaussian())),
        (2 * PIXELS - 1, None),
        (torch.randn(12, 1, 6, 6), None),
        (LEVELS, VLB(Categorical(256))),
    ],
    ids=["a density", "a weighted density", "scaled", "latents", "levels"],
)
def test_data_that_fit_their_loss_give_no_warning(data, loss):
    with warnings.catch_warnings(action="error"):
        train(objective(loss), data, CONFIG, quiet=True)


def test_levels_without_a_decoder_are_told_which_loss():
    for data in (LEVELS, LEVELS.to(torch.uint8)):
        with pytest.raises(TypeError, match="'x' must be real and floating where the loss has no"):
            objective()(data)
        with pytest.raises(TypeError, match=r"loss=VLB\(Categorical\(256\)\)\) trains the bound"):
            train(objective(), data, CONFIG, quiet=True)


def test_pixels_for_a_decoder_of_levels_are_told_how_to_become_levels():
    with pytest.raises(TypeError, match=r"pixels in \[0, 1\] are \(x \* 255\).round\(\).long\(\)"):
        train(objective(VLB(Categorical(256))), PIXELS, CONFIG, quiet=True)


def test_a_network_of_which_nothing_can_be_trained_is_refused():
    frozen = objective(network=Net().requires_grad_(False))
    with pytest.raises(
        ValueError, match=r"a gradient; got 2, all frozen \(network.requires_grad_"
    ):
        train(frozen, 2 * PIXELS - 1, CONFIG, quiet=True)
    with pytest.raises(ValueError, match="have parameters that require a gradient; got none"):
        train(objective(network=nn.Identity()), 2 * PIXELS - 1, CONFIG, quiet=True)
    frozen.model.network.layer.bias.requires_grad_(True)
    train(frozen, 2 * PIXELS - 1, CONFIG, quiet=True)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (torch.zeros(12, 6, 6, 3), r"channels come first: x.movedim\(-1, 1\)"),
        ([torch.zeros(6, 6, 3)], r"channels come first: x.movedim\(-1, 1\)"),
        (torch.zeros(12, 1, 6, 6), "other channels: vdiff.data.load"),
        (TensorDataset(torch.zeros(12, 1, 6, 6)), "other channels: vdiff.data.load"),
    ],
)
def test_channels_that_are_last_or_others_are_said(data, hint):
    colors = Config(CONFIG.network, level_head=False, shape=[3, 6, 6], steps=3, batch=4)
    with pytest.raises(ValueError, match=f"'data' must .*config's shape.*{hint}"):
        train(objective(network=Net(3)), data, colors, quiet=True)


@pytest.mark.parametrize(
    ("network", "x", "note"),
    [
        (Net(1), torch.randn(2, 3, 6, 6), "takes 1 channels, and the data have 3: vdiff.data"),
        (Net(3), torch.randn(2, 1, 6, 6), "takes 3 channels, and the data have 1: vdiff.data"),
        (Net(3), torch.randn(2, 6, 6, 3), "Images are (n, channels, height, width): x.movedim"),
        (nn.Bilinear(4, 1, 4).half(), torch.randn(2, 4), "weights in float32 and use torch.auto"),
        (nn.Identity(), torch.randn(2, 4), "was given z (2, 4) in torch.float32, time (2,) in"),
    ],
    ids=["grey given color", "color given grey", "channels last", "half precision", "another"],
)
def test_an_error_within_a_network_says_what_it_was_given(network, x, note):
    call = None
    if isinstance(network, nn.Bilinear):
        call = lambda network, z, t: network(z, t[:, None])  # noqa: E731
    with pytest.raises((RuntimeError, TypeError)) as error:
        weighted_elbo(Denoiser(network, V(), call=call), x, schedule=Cosine())
    (said,) = error.value.__notes__
    assert said.startswith(f"Denoiser: the network was given z {tuple(x.shape)} in torch.float")
    assert note in said


@pytest.mark.parametrize("kind", ["images", "file", "dataset", "stream"])
def test_weights_of_one_s_own_loop_record_whatever_data_train_takes(kind, tmp_path):
    images = Images(LEVELS.to(torch.uint8), torch.zeros(12, dtype=torch.int64), record="mine")
    kinds: dict[str, tuple[Any, str, str | None]] = {
        "images": (images, fingerprint(LEVELS), "mine"),
        "file": (stored(tmp_path), fingerprint(PIXELS), "pixels.npy: 12 rows of float32"),
        "dataset": (
            TensorDataset(LEVELS),
            f"TensorDataset of 12 items, of 12 {fingerprint(LEVELS)}",
            None,
        ),
        "stream": (iter([*LEVELS]), "list_iterator, a stream without a hash", None),
    }
    data, hashed, record = kinds[kind]
    with Run.open(tmp_path / "run", CONFIG) as run:
        run.save(objective(VLB(Categorical(256))), data=data)
    loaded = Run(tmp_path / "run").loaded(objective=objective(VLB(Categorical(256))))
    assert loaded.data == [hashed]
    assert loaded.record["training data"] == record
