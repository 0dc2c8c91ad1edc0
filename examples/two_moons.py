"""Rao-Blackwell against Monte Carlo on two moons: what the closed form of a step's KL buys, and
what it does not.

The same small network is trained by two estimators of one T-step bound: the KL of each step in
closed form (Rao-Blackwell), or the log-ratio log q(z_s|z_t, x)/p(z_s|z_t) at one sampled z_s
(Monte Carlo), from equal weights, on equal batches, times and noise. Five seeds take about six
minutes of one core. Expect, at T = 1000, a variance 100 (clean end) to 17,000 times (noisy end) as
large for Monte Carlo's value of one step, 210 times for the gradient of a batch, and after 3,000
steps a bound of 1.60 ± 0.03 nats against 3.24 ± 0.07: Monte Carlo's network is then still behind a
single Gaussian (2.73).

    python examples/two_moons.py --out runs/two_moons

The folder holds the figures (samples, training, and the variances by t; GIFs of the first and
last), findings.txt and findings.json, and in a subfolder named by the digest of their settings the
runs: a second call only draws them again.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import two_moons_figures as figures
from sklearn.datasets import make_moons
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from two_moons_figures import TRAINED_BY, Tensors
from two_moons_findings import findings, sentences, table
from two_moons_variances import ESTIMATORS, along_path, at_step

import vdiff
from vdiff.cli.parser import Parser, positive
from vdiff.decoder import Gaussian
from vdiff.disk import write_text
from vdiff.metrics import mmd
from vdiff.nn import MLP
from vdiff.terminal import replace_unencodable, say, track
from vdiff.times import generator_of
from vdiff.training.weights import read_weights, save_tensors

SCHEDULE, DECODER = vdiff.schedule.Linear(8.0, -8.0), Gaussian()


@dataclass(frozen=True)
class Settings:
    """What a kept result depends on."""

    steps: int = 3000
    chain: int = 1000  # T
    batch: int = 512
    lr: float = 1e-3
    snapshots: int = 13  # at geometric steps of the training, the first before it
    bound_draws: int = 32  # for each held-out point
    samples: int = 1000
    sampling: int = 100  # noise levels that ancestral sampling visits
    times: int = 12  # of the chain, at which variances are measured
    points: int = 256  # of held-out data, for the variances
    repeats: int = 16  # draws for each
    fewer: int = 4  # times as few points, and repeats, for the gradients
    path_repeats: int = 64  # paths from each of 16 points

    @property
    def at(self) -> list[int]:
        """The steps of the snapshots."""
        last = math.log10(self.steps)
        later = torch.logspace(last - math.log10(150), last, self.snapshots - 1)
        return sorted({0, *later.round().int().clamp(min=1).tolist()})

    @property
    def measured(self) -> list[int]:
        """The snapshots whose variances are measured: every other one, the last among them."""
        return list(range(len(self.at)))[::-2][::-1]

    @property
    def compared(self) -> list[int]:
        """The snapshots at which the two trainings are compared: one halfway through them, and the
        last."""
        return [len(self.at) // 2, len(self.at) - 1]

    @property
    def chain_steps(self) -> list[int]:
        """The steps of the chain at which they are."""
        return sorted({*torch.linspace(1, self.chain, self.times).round().int().tolist()})

    @property
    def chains(self) -> list[int]:
        """The lengths of chain of the paths."""
        return sorted({max(2, self.chain // 100), max(2, self.chain // 10), self.chain})

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


QUICK = Settings(
    steps=60, chain=50, batch=64, snapshots=5, bound_draws=1, samples=100, sampling=10,
    times=4, points=32, repeats=4, fewer=2, path_repeats=8,
)  # fmt: skip


def moons() -> tuple[Tensor, Tensor]:
    """20,000 points to train on and 2,000 held out, each coordinate with mean 0 and variance 1."""
    points = torch.from_numpy(make_moons(22_000, noise=0.05, random_state=0)[0])
    points = ((points - points[:20_000].mean(0)) / points[:20_000].std(0)).float()
    return points[:20_000], points[20_000:]


def network_of(weights: Tensor | None = None) -> vdiff.Denoiser:
    model = vdiff.Denoiser(MLP(2), vdiff.parameterization.Eps())
    if weights is not None:
        vector_to_parameters(weights.clone(), model.parameters())
    return model.requires_grad_(weights is None)


def train(settings: Settings, seed: int, name: str) -> Tensors:
    """The snapshots of one training, what each samples and is worth, and the loss of every
    batch."""
    data, held_out = moons()
    torch.manual_seed(seed)
    model, losses = network_of(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)

    def snapshot() -> Tensors:
        weights = parameters_to_vector(model.parameters()).detach()
        return {"weights": weights, **worth(model, held_out, settings)}

    snapshots = [snapshot()]
    for step in track(range(settings.steps), "step", f"seed {seed}, {TRAINED_BY[name]}"):
        # the same rows, t and ε for both estimators; z_s is drawn last
        generator = generator_of(seed, step)
        rows = torch.randint(len(data), (settings.batch,), generator=generator)
        loss = bound(model, data[rows], settings.chain, generator, name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step + 1 in settings.at:
            snapshots.append(snapshot())
    return stacked(snapshots) | {"losses": torch.stack(losses)}


def bound(
    model: nn.Module, x: Tensor, chain: int, generator: torch.Generator, name: str = "RB"
) -> Tensor:
    """The mean negative evidence lower bound, nats per point."""
    of_chain = {"schedule": SCHEDULE, "decoder": DECODER, "steps": chain}
    draws = {"estimator": ESTIMATORS[name], "generator": generator}
    return vdiff.elbo(model, x, **of_chain, **draws).total.mean()


@torch.no_grad()
def worth(model: nn.Module, held_out: Tensor, settings: Settings) -> Tensors:
    """The bound by the better estimator whatever the training's, samples, and their MMD²: the same
    draws for every model."""
    noise = torch.randn(settings.samples, 2, generator=generator_of(0, 0, "samples"))
    steps, generator = settings.sampling - 1, generator_of(0, 1, "samples")
    made = vdiff.sample(model, noise, schedule=SCHEDULE, steps=steps, generator=generator)
    repeated = held_out.repeat(settings.bound_draws, 1)
    nats = bound(model, repeated, settings.chain, generator_of(0, 0, "bound"))
    return {"samples": made, "bound": nats, "mmd": mmd(made, held_out[:1000])}


def kept(folder: Path, name: str, make: Callable[[], Tensors]) -> Tensors:
    """What `make` gives, from its file if it is there."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, make())
    return read_weights(path).tensors


def stacked(rows: list[Tensors]) -> Tensors:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def numbers(rows: list[dict[str, float]]) -> Tensors:
    return {k: torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in rows[0]}


def spreads_of(settings: Settings, seed: int, weights: Tensor) -> Tensors:
    """`at_step` as (snapshots, times), by the snapshots of `settings.measured`."""
    x = moons()[1][: settings.points]
    rows = []
    for i in track(settings.measured, "snapshot", f"seed {seed}, variances"):
        network, generator = network_of(weights[i]).network, generator_of(seed, i, "variances")
        draws = {"repeats": settings.repeats, "fewer": settings.fewer}
        chain = (settings.chain, SCHEDULE, generator)
        found = [at_step(network, x, j, *chain, **draws) for j in settings.chain_steps]
        rows.append(numbers(found))
    return stacked(rows)


def paths_of(settings: Settings, seed: int, weights: Tensor) -> Tensors:
    """`along_path` of the last network, by length of the chain."""
    model, x, found = network_of(weights[-1]), moons()[1][:16], []
    for n in track(settings.chains, "chain", f"seed {seed}, paths"):
        draws = generator_of(seed, n, "paths")
        found.append(along_path(model, x, n, SCHEDULE, draws, repeats=settings.path_repeats))
    return numbers(found)


def main() -> None:
    parser = Parser(description=__doc__)
    text = "folder (default: runs/two_moons, or runs/two_moons-quick)"
    parser.add_argument("--out", type=Path, help=text)
    parser.add_argument("--seeds", type=positive, help="number of seeds, 2 or more (default: 5)")
    text = f"training steps (default: {Settings.steps})"
    parser.add_argument("--steps", type=positive, help=text)
    text = f"T of the bound (default: {Settings.chain})"
    parser.add_argument("--chain", type=positive, help=text)
    text = "other defaults: 2 tiny trainings that only show that all runs"
    parser.add_argument("--quick", action="store_true", help=text)
    options = parser.parse_args()
    if options.seeds == 1:
        parser.error("one seed has no standard error: --seeds 2")
    given = {key: v for key in ("steps", "chain") if (v := getattr(options, key)) is not None}
    settings = replace(QUICK if options.quick else Settings(), **given)
    seeds = options.seeds or (2 if options.quick else 5)
    out = options.out or Path("runs/two_moons-quick" if options.quick else "runs/two_moons")
    started, folder = time.time(), out / settings.digest
    runs: dict[str, list[Tensors]] = {name: [] for name in TRAINED_BY}
    spreads, paths = [], []
    for seed in range(seeds):
        for name, done in runs.items():
            done.append(kept(folder, f"seed{seed}_{name}", partial(train, settings, seed, name)))
        given = settings, seed, runs["RB"][seed]["weights"]
        spreads.append(kept(folder, f"seed{seed}_variances", partial(spreads_of, *given)))
        paths.append(kept(folder, f"seed{seed}_paths", partial(paths_of, *given)))
    over = {name: stacked(done) for name, done in runs.items()}
    found = findings(settings, over, stacked(spreads), stacked(paths))
    report = f"{table(settings, stacked(paths))}\n\n{sentences(settings, seeds, found)}"
    write_text(out / "findings.txt", report + "\n")
    record = {"settings": asdict(settings), "seeds": seeds, "mean, standard error": found}
    write_text(out / "findings.json", json.dumps(record, indent=2))
    say(f"\n{report}\n")
    first = {name: done[0] for name, done in runs.items()}
    figures.samples(out, settings.at, first, moons()[1][: settings.samples])
    figures.training(out, settings.at, over)
    times = torch.tensor(settings.chain_steps) / settings.chain
    figures.variances(out, [settings.at[i] for i in settings.measured], times, stacked(spreads))
    say(f"{time.time() - started:.0f} s; figures, findings.json and findings.txt in {out}")


if __name__ == "__main__":
    replace_unencodable()
    main()
