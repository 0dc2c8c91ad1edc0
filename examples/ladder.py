"""The ladder of experiments from a chain's bound to a good sampler, as one table: mean × reverse
variance × loss.

Data: scikit-learn's digits, 8x8 with 17 grey levels, 1,300 to train on, 297 held out. Chain:
DDPM's linear β rescaled to 100 noise levels, so 99 steps; the decoder at the first level is the
same for every row, a discretized Gaussian around z₀/α₀ that does not look at the network, so that
rows differ by their chain alone. Network: an MLP of 0.17 million parameters (0.19 with a
variance), AdamW for 2,000 steps at batch 128 without clipping or averaging, three seeds for every
row. About nine minutes on one idle core. Expect the best bound from ε/range/hybrid, 3.354 ± 0.001
bits/dim (4.794 ± 0.007 with the fixed small variance), and the best samples from x/small/MSE,
whose bound is one of the worst.

    python examples/ladder.py --out runs/ladder

Every (row, seed) is stored when it is done, under its settings: the same command resumes, and
redraws the figures. The run folder holds table.md with the findings, table.json, the figures and
one pair of JSON and safetensors for each (row, seed). `--long` repeats the winners at 3 and 14
times the training steps, and ε/small by either loss at 3 times (five times as long in all);
`--quick` only shows that all of it runs.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import ladder_figures
import torch
from ladder_findings import QUANTILES, Results, Row, findings, render, winners
from ladder_parts import DATA, VARIANCES, Setting
from torch import Tensor, nn

from vdiff import Denoiser, bits_per_dim, elbo, hybrid_loss, weighted_elbo
from vdiff.cli.parser import Parser, positive
from vdiff.decoder import DiscretizedGaussian
from vdiff.disk import write_text
from vdiff.gaussian import alpha
from vdiff.likelihood import evaluate
from vdiff.metrics import mmd
from vdiff.parameterization import Eps, PosteriorMean, X
from vdiff.sampling import History, ancestral, uniform
from vdiff.schedule import Tabulated
from vdiff.terminal import Bar, replace_unencodable, say
from vdiff.times import generator_of, offset_of, on_chain, stratified
from vdiff.training.trainer import lr_lambda
from vdiff.training.weights import read_weights, save_tensors
from vdiff.weighting import MSE

ROWS = [
    *(Row("mean", variance, "VLB") for variance in ("output", "direct", "log", "small")),
    Row("mean", "small", "MSE"),
    *(Row(mean, "small", loss) for mean in ("x", "ε") for loss in ("VLB", "MSE")),
    Row("ε", "large", "MSE"),
    *(Row("ε", variance, "hybrid_loss") for variance in ("log", "range")),
]


STORED = "curve: step, bits/dim, mean MSE"  # what a run keeps: one that kept less is made again
# those that the ladder's source trains for longer, 3 times as long
PAIR = Row("ε", "small", "VLB"), Row("ε", "small", "MSE")


class Ladder:
    """The problem, its chain and its decoder; a row of it trained and measured is a record and its
    tensors."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.problem = setting, DATA[setting.data]()
        self.images = self.problem.images
        # keeps the noise end of DDPM's own 1000 levels; the data end starts noisier
        rescale = 1000 / setting.levels
        self.table = Tabulated.linear_betas(1e-4 * rescale, 0.02 * rescale, setting.levels)
        self.chain = self.table.steps
        self.decoder = DiscretizedGaussian(self.problem.grey_levels)
        self.mean = PosteriorMean(self.table, self.chain)
        self.means = {"mean": self.mean, "x": X(), "ε": Eps()}
        self.dims = self.images.train[0].numel()

    def model(self, row: Row) -> Denoiser:
        variance = VARIANCES[row.variance]()
        network = self.problem.network(2 if variance.learned else 1)
        return Denoiser(network, self.means[row.mean], variance=variance)

    def loss(self, row: Row, model: Denoiser, images: Tensor, **draw: Any) -> Tensor:
        """Nats per dimension of the bound, or the mean square of the target's error, or
        `hybrid_loss`, averaged over a batch."""
        chain = {"schedule": self.table, "steps": self.chain, **draw}
        if row.loss == "VLB":
            return elbo(model, images, decoder=self.decoder, **chain).total.mean() / self.dims
        x = self.decoder.encode(images)
        if row.loss == "hybrid_loss":
            return hybrid_loss(model, x, **chain).mean()
        plain = MSE(self.table, self.means[row.mean], steps=self.chain)
        return weighted_elbo(model, x, weighting=plain, **chain).mean() / self.dims

    def train(self, row: Row, seed: int, bar: Bar) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """One row from one seed: what was measured, and the traces, samples and weights. Batches,
        times and noise are the seed's."""
        torch.manual_seed(seed)
        model = self.model(row)
        tensors, diverged = self.optimize(row, model, seed, bar)
        norms = tensors["norm"] if len(tensors["norm"]) else torch.tensor([math.inf])
        tensors |= {f"model.{name}": value for name, value in model.state_dict().items()}
        record: dict[str, Any] = dict.fromkeys(("bits", "mean_mse", "mmd", "runaway"))
        record["diverged"], bound = diverged, None
        if diverged is None:
            bound = self.bound(model, self.images.test, seed, draws=self.setting.draws)
        if bound is None:
            record["diverged"] = diverged or self.setting.steps * row.times
        else:
            record |= {"bits": bound[0], "bits_monte_carlo": bound[1], "bits_images": bound[2]}
            record["mean_mse"] = self.mean_mse(model, seed)
            images, record["runaway"] = self.sample(model, seed)
            record["mmd"], tensors["samples"] = self.distance(images), images.to(torch.int32)
        at = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
        quantiles = norms.double().quantile(at)
        record["norm"] = dict(zip(QUANTILES, quantiles.tolist(), strict=True))
        return record, tensors

    def optimize(
        self, row: Row, model: Denoiser, seed: int, bar: Bar
    ) -> tuple[dict[str, Tensor], int | None]:
        """Train a row's model: its losses, gradient norms and curve, and the step at which it
        diverged."""
        setting, steps = self.setting, self.setting.steps * row.times
        # eps: a loss in other units is no other learning rate
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=setting.lr, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-15
        )
        losses, norms, curve, diverged = [], [], [], None
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = setting.lr * lr_lambda(step, steps // 20 + 1, steps)
            generator = generator_of(seed, step)
            rows = torch.randint(len(self.images.train), (setting.batch,), generator=generator)
            t = on_chain(stratified(setting.batch, offset=offset_of(seed, step)), self.chain)
            loss = self.loss(row, model, self.images.train[rows], t=t, generator=generator)
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if not math.isfinite(loss.item() + norm.item()):
                diverged = step + 1
                break
            losses.append(loss.item())
            norms.append(norm.item())
            optimizer.step()
            if (step + 1) % min(steps, max(5, steps // 10)) == 0:
                curve.append((step + 1, *self.on_selection(model, seed)))
            bar.update()
        bar.update(steps - len(losses))
        traces = {"loss": torch.tensor(losses), "norm": torch.tensor(norms)}
        return traces | {"curve": torch.tensor(curve).view(-1, 3)}, diverged

    def on_selection(self, model: Denoiser, seed: int) -> tuple[float, float]:
        """A point of the curve: bits/dim and mean MSE, with a third of the draws."""
        images, draws = self.images.selection, -(-self.setting.draws // 3)
        bound = self.bound(model, images, seed, draws=draws)
        error = self.mean_mse(model, seed, images, draws)
        return math.nan if bound is None else bound[0], error

    def bound(
        self, model: Denoiser, images: Tensor, seed: int, draws: int
    ) -> tuple[float, float, float] | None:
        """Bits/dim of the chain's bound with the row's own Σ, its Monte Carlo error and that over
        images; None where not finite."""
        try:
            chain = {"schedule": self.table, "decoder": self.decoder, "steps": self.chain}
            found = evaluate(model, images, draws=draws, replicates=2, seed=seed, **chain).total
        except ValueError as error:
            if "finite bound" not in str(error):
                raise
            return None
        return found.value, found.monte_carlo, found.images

    @torch.no_grad()
    def mean_mse(
        self, model: Denoiser, seed: int, images: Tensor | None = None, draws: int | None = None
    ) -> float:
        """E(μ̃ − μ̂)² of the posterior mean per dimension on held-out images, averaged over the
        chain's steps: one unit for all rows."""
        x = self.decoder.encode(self.images.test if images is None else images)
        x = x.repeat(draws or self.setting.draws, 1, 1, 1)
        t = on_chain(stratified(len(x), offset=0.5), self.chain)
        # divides by all levels, the decoder's among them
        weighting = MSE(self.table, self.mean, steps=self.chain)
        chain = {"schedule": self.table, "steps": self.chain, "weighting": weighting}
        noise = generator_of(seed, 0, "mean MSE")
        error = weighted_elbo(model, x, **chain, t=t, generator=noise)
        return error.mean().item() / self.dims * self.setting.levels / self.chain

    @torch.no_grad()
    def sample(self, model: Denoiser, seed: int) -> tuple[Tensor, float]:
        """Ancestral samples with the row's own Σ, as the decoder's most likely images, and how
        many of them ran away to infinity."""
        size = self.setting.samples, *self.images.test.shape[1:]
        z = torch.randn(size, generator=generator_of(seed, 0, "samples"))
        history = History(generator=generator_of(seed, 1, "samples"))
        # not `sample`, which stops where a state is infinite
        for noisier, cleaner in pairwise(uniform(self.table, self.chain)):
            z = ancestral(model.eval(), z, noisier.expand(len(z)), cleaner.expand(len(z)), history)
        x = z / alpha(torch.tensor(self.table.logsnr_max))
        finite = torch.isfinite(x.flatten(1)).all(1).double().mean().item()
        return self.decoder.decode(x.nan_to_num()), 1 - finite

    def distance(self, images: Tensor) -> float:
        """MMD² to the held-out images, both as x in [−1, 1]."""
        return mmd(self.decoder.encode(images), self.decoder.encode(self.images.test)).item()

    def caption(self, seeds: int) -> str:
        setting, test, floor = self.setting, self.images.test, self.distance(self.images.train)
        nats = self.decoder.expected_nll(test, self.table.logsnr_max).mean()
        decoded = bits_per_dim(nats, self.dims).item()
        return (
            f"{setting.data}: {len(test)} held-out images, {self.chain} steps of the chain, "
            f"{setting.steps} of training, {seeds} seeds, ± standard errors over "
            "seeds. Mean MSE: of the posterior mean, per dimension and step, data in [−1, 1]. "
            "Bits/dim: the chain's bound with the row's own Σ, "
            f"{decoded:.3f} of it the decoder's, {self.decoder!r} on z₀/α₀ for every row. "
            f"MMD²: {setting.samples} ancestral samples with the row's own Σ "
            f"against held-out images (training images: {1e3 * floor:.2g} ×10⁻³). Gradient "
            f"norm: of the row's loss per dimension, largest over seeds, unclipped."
        )

    def run(self, rows: list[Row], seeds: int, folder: Path) -> Results:
        """Every (row, seed), from `folder` where it is known; one that diverges is recorded, and
        the next begins."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for row, seed in product(rows, range(seeds)):
            key = json.dumps([asdict(self.setting), asdict(row), seed, STORED])
            digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
            name = str(row).replace("/", "-").replace(" ×", "-x")
            paths[row, seed] = folder / f"{name}-seed{seed}-{digest}.json"
        todo = [key for key, path in paths.items() if not path.exists()]
        with Bar(sum(self.setting.steps * row.times for row, _ in todo)) as bar:
            for row, seed in todo:
                bar.label = f"{row}, seed {seed}"
                record, tensors = self.train(row, seed, bar)
                save_tensors(paths[row, seed].with_suffix(".safetensors"), tensors)
                write_json(paths[row, seed], record)  # last: it says that both are there
        known = {
            key: (
                json.loads(path.read_text("utf-8")),
                read_weights(path.with_suffix(".safetensors")).tensors,
            )
            for key, path in paths.items()
        }
        return {row: [known[row, seed] for seed in range(seeds)] for row in rows}


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    text = "run folder (default: runs/ladder, or runs/ladder-quick)"
    parser.add_argument("--out", type=Path, help=text)
    text = "default: %(default)s"
    parser.add_argument("--data", default="digits", choices=sorted(DATA), help=text)
    text = "runs of each row (default: %(default)s)"
    parser.add_argument("--seeds", type=positive, default=3, help=text)
    text = "training steps (default: %(default)s)"
    parser.add_argument("--steps", type=positive, default=Setting.steps, help=text)
    text = "repeat the best rows at 3 and 14 times the steps, ε/small by both losses at 3 times"
    parser.add_argument("--long", action="store_true", help=text)
    text = "a few steps of a short chain from two seeds: shows that it runs"
    parser.add_argument("--quick", action="store_true", help=text)
    options, started = parser.parse_args(arguments), time.time()
    setting, seeds = Setting(options.data, steps=options.steps), options.seeds
    if options.quick:
        setting, seeds = replace(setting, levels=25, steps=10, batch=32, draws=4, samples=40), 2
    out = options.out or Path("runs/ladder-quick" if options.quick else "runs/ladder")
    ladder, runs = Ladder(setting), out / "runs"
    results = ladder.run(ROWS, seeds, runs)
    if options.long:
        longer = [(row, times) for row in winners(results).values() for times in (3, 14)]
        longer = dict.fromkeys([*longer, *((row, 3) for row in PAIR)])
        again = [replace(row, times=times) for row, times in longer]
        results |= ladder.run(again, seeds, runs)
    rows = [{**asdict(row), "seeds": [r for r, _ in runs]} for row, runs in results.items()]
    said, caption = findings(results), ladder.caption(seeds)
    report = {"setting": asdict(setting), "caption": caption, "rows": rows, "findings": said}
    table = "\n\n".join([render(results), caption, "\n".join(f"- {line}" for line in said)]) + "\n"
    write_json(out / "table.json", report)
    write_text(out / "table.md", table)
    say(f"\n{table}")
    ladder_figures.draw(out / "figures", ladder, results)
    say(f"{time.time() - started:.0f} s; table, results and figures in {out}")


if __name__ == "__main__":
    replace_unencodable()
    main()
