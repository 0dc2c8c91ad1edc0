"""Inpainting with bounds: one model of digits that knows every part given every other part.

A U-Net of 8×8 digits is trained with random masks: a half or a box is given, or absent, or the
whole image is modelled. What is given is clean, what is absent is noise, and the network gets
λ of each pixel. The model then bounds

    −log p(both),   −log p(left),   −log p(right | left)

on test images. For the left half alone, the right half is absent. By the chain rule the last two
add up to the first, if the model is one distribution. Printed is the gap,

    bits(left) + bits(right | left) − bits(both),

in bits per image with both errors, paired on the same images; and the same in the other order, and
for top and bottom. Both sides are bounds, so the gap can have either sign.

    python examples/inpainting.py --out runs/inpainting    # five minutes on one idle core
    python examples/inpainting.py --quick                  # seconds: too few steps

Expect 109.5 bits for both (1.71 bits/dim), and sums that are 2.5 to 3.2 ± 0.3 (Monte Carlo) above:
to know a digit by halves costs this model 3 bits (benchmarks/results/inpainting.txt).

The figure completions.png has test digits, what is given of them, and samples of the rest. Needs
the extra `train`.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import vdiff
from vdiff import plots
from vdiff.cli.parser import Parser, positive
from vdiff.data.digits import LEVELS, digits
from vdiff.disk import atomic_write, write_text
from vdiff.likelihood import Report
from vdiff.masks import Absent, Mixture, NothingGiven, RandomBox, RandomHalf
from vdiff.objective import Objective
from vdiff.schedule import Cosine
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of
from vdiff.training import Config, Validation, train

MASKS = Mixture(
    [NothingGiven(), RandomHalf(), Absent(RandomHalf()), RandomBox(), RandomBox(outside=True)],
    weights=[4, 3, 3, 1, 1],
)
HIGH, LOW = 9.0, -7.0
FIRST = torch.arange(8) < 4
SIDES = {
    "left": FIRST.expand(1, 8, 8), "right": ~FIRST.expand(1, 8, 8),
    "top": FIRST[:, None].expand(1, 8, 8), "bottom": ~FIRST[:, None].expand(1, 8, 8),
}  # fmt: skip
ORDERS = ("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")
SHOWN, SAMPLES = 10, 4  # digits in the figure, completions of each
DIMS = 64


@dataclass(frozen=True)
class Bits:
    """Bits of each image, with the Monte Carlo error of their mean."""

    by_image: Tensor
    monte_carlo: float

    @classmethod
    def of(cls, report: Report) -> "Bits":
        assert report.by_image is not None
        dims = DIMS if report.dims is None else report.dims
        by_image = report.by_image * dims
        share = by_image.mean().item() / report.total.value  # dimensions per image
        return cls(by_image, report.total.monte_carlo * share)

    def __add__(self, other: "Bits") -> "Bits":
        error = math.hypot(self.monte_carlo, other.monte_carlo)
        return Bits(self.by_image + other.by_image, error)

    def __neg__(self) -> "Bits":
        return Bits(-self.by_image, self.monte_carlo)

    def __str__(self) -> str:
        over_images = self.by_image.std() / len(self.by_image) ** 0.5
        return f"{self.by_image.mean():8.3f}{self.monte_carlo:16.3f}{over_images:14.3f}"


def config_of(options: argparse.Namespace) -> Config:
    return Config(
        network={
            "name": "UNet", "channels": 1, "channels_out": LEVELS, "width": options.width,
            "multipliers": [1, 1], "dropout": 0.2, "field": True,
        },
        schedule={
            "name": "Normal", "mean": 2.5, "std": 3.0, "logsnr_max": HIGH, "logsnr_min": LOW
        },
        decoder={"name": "Categorical", "levels": LEVELS},
        weight_decay=0.05,
        steps=options.steps,
        seed=options.seed,
    )  # fmt: skip


class Measured:
    """The bounds of one model on test images. Each has draws of its own, so that their Monte Carlo
    errors add in squares."""

    def __init__(self, objective: Objective, images: Tensor, draws: int) -> None:
        self.objective, self.images, self.draws, self.count = objective, images, draws, 0

    def __call__(self, **masks: Tensor) -> Bits:
        self.count += 1
        ends = {"schedule": self.objective.schedule, "decoder": self.objective.decoder}
        effort = {"draws": self.draws, "replicates": 4, "seed": self.count}
        report = vdiff.evaluate(self.objective.model, self.images, **ends, **effort, **masks)
        return Bits.of(report)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/inpainting"), help="folder")
    numbers = {
        "steps": (3000, "training steps"),
        "width": (24, "channels of the U-Net"),
        "draws": (16, "times per test image and replicate"),
        "images": (297, "test images"),
    }
    for name, (number, what) in numbers.items():
        text = f"{what} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=positive, default=number, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws")
    parser.add_argument("--quick", action="store_true", help="few steps and images")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.width, options.draws, options.images = 5, 8, 4, 16
    orders = ORDERS[:1] if options.quick else ORDERS
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    data, config = digits(), config_of(options)
    validate = Validation(data.selection[: options.images])
    settings = {"mask": MASKS, "validate": validate, "every": max(1, options.steps // 6)}
    objective = train(config.objective(), data.train, config, **settings)
    rows = bounds(objective, data.test[: options.images], options.draws, orders)
    say(table(rows))
    write_text(options.out / "table.txt", table(rows) + "\n")
    plain = {
        name: {"bits": bits.by_image.tolist(), "monte_carlo": bits.monte_carlo}
        for name, bits in rows.items()
    }
    write_text(options.out / "results.json", json.dumps(plain) + "\n")
    draw(options.out / "completions.png", objective, data.test[:SHOWN])


def bounds(
    objective: Objective, images: Tensor, draws: int, orders: Sequence[tuple[str, str]] = ORDERS
) -> dict[str, Bits]:
    """The bounds of both halves, of one, of the other given it, and the gaps."""
    measure = Measured(objective, images, draws)
    rows = {"both": measure()}
    for first, second in orders:
        rest = SIDES[second]
        rows[first] = measure(absent=rest)
        rows[f"{second} | {first}"] = measure(mask=rest)
        total = rows[first] + rows[f"{second} | {first}"]
        rows[f"gap: {first}, then {second}"] = total + -rows["both"]
    return rows


def table(rows: dict[str, Bits]) -> str:
    title = f"{'bits per image':<24}{'value':>8}{'Monte Carlo SE':>16}{'over images':>14}"
    return "\n".join([title, *(f"{name:<24}{bits}" for name, bits in rows.items())])


def complete(objective: Objective, images: Tensor, mask: Tensor, seed: int) -> Tensor:
    """Grey levels, with samples where the mask is True and the images elsewhere."""
    decoder = objective.decoder
    assert decoder is not None
    noise = torch.randn(images.shape, generator=generator_of(seed, 0, "completions"))
    made = vdiff.sample(
        objective.model, noise, schedule=Cosine(HIGH, LOW), steps=99, mask=mask,
        given=decoder.encode(images), generator=generator_of(seed, 1, "completions"),
    )  # fmt: skip
    return decoder.decode(made)


def draw(path: Path, objective: Objective, images: Tensor) -> None:
    """Rows: the truth, what is given, completions; for the right and for the lower half."""
    _, panels = plots.figure(1, 2, height=3.2)
    for ax, side in zip(panels, ("right", "bottom"), strict=True):
        mask = SIDES[side]
        given = torch.where(mask, (LEVELS - 1) // 2, images)
        made = [complete(objective, images, mask, seed) for seed in range(SAMPLES)]
        title = f"truth; what is given; {SAMPLES} samples of the {side} half"
        plots.image_grid(ax, torch.cat([images, given, *made]), title, columns=SHOWN)
    with atomic_write(path) as file:
        plots.save(file, panels)


if __name__ == "__main__":
    replace_unencodable()
    main()
