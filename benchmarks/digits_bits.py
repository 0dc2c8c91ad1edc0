"""A trained network's bits per dimension in every way there is, side by side: do they agree where
theory says so?

    python examples/digits.py --steps 1000 --out runs/digits
    python benchmarks/digits_bits.py --run runs/digits  # writes benchmarks/results/digits_bits.txt

On the digits' test set, bits/dim ± Monte Carlo ± over images:

1. the bound in continuous time, one number by four estimators: stratified with everything on, with
   independent uniform times and nothing else, on a chain of a million steps, and by VDM's grid
   with one offset shared by all images;
2. the bound of a chain of 64 steps, one number by three estimators: closed-form KLs of drawn
   steps, sampled log-ratios of every step, and the log-ratio of whole paths; then
   importance-weighted over those paths, a tighter bound of the same model;
3. the likelihood of the probability-flow ODE under each dequantisation, which is another model's:
   the gap may have either sign.

z is how far a number lies from the first of its group, in standard errors of both. About 1.4
million network evaluations and as many of the ODE's with a gradient: half an hour on one busy
core.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vdiff import elbo
from vdiff.cli.parser import Parser
from vdiff.data.digits import digits
from vdiff.likelihood import (
    Estimate,
    Report,
    TruncatedNormal,
    Uniform,
    VarianceReduction,
    dequantized_ode,
    evaluate,
    path_importance,
)
from vdiff.likelihood._models import evaluating
from vdiff.likelihood.replicated import Replicated
from vdiff.oracle import Gaussian
from vdiff.reverse import MonteCarlo
from vdiff.schedule import Linear
from vdiff.terminal import replace_unencodable, say
from vdiff.times import generator_of
from vdiff.training import Run

STEPS, MANY = 64, 1_000_000


def repeated(
    bound: Callable[[torch.Generator], torch.Tensor], replicates: int, dims: int, evaluations: int
) -> Replicated:
    """(images,) nats by a generator, several times over."""
    nats = torch.stack([bound(generator_of(0, r, "repeated")).double() for r in range(replicates)])
    return Replicated(nats, dims, torch.full((nats.shape[1],), evaluations * replicates))


def shared_grid(run: Callable[..., torch.Tensor], images: int, passes: int, dims: int) -> Estimate:
    """VDM's own way: t = (u + i/n) mod 1 over the images of a pass. Its error is that between
    passes."""
    means = []
    for p in range(passes):
        generator = generator_of(0, p, "grid")
        t = (
            torch.rand(1, generator=generator, dtype=torch.float64) + torch.arange(images) / images
        ) % 1
        means.append(
            run(t[torch.randperm(images, generator=generator)], generator).double().mean()
        )
    found = torch.stack(means) / (dims * math.log(2))
    return Estimate(
        found.mean().item(), (found.std() / math.sqrt(passes)).item(), None, passes - 1, images
    )


def line(name: str, e: Estimate, evaluations: object, first: Estimate | None = None) -> str:
    images = f"{e.images:.4f}" if e.images is not None else ""
    z = (
        ""
        if first is None or e is first
        else f"{(e.value - first.value) / math.hypot(e.monte_carlo, first.monte_carlo):.2f}"
    )
    return f"{name:<46}{e.value:>9.4f}{e.monte_carlo:>9.4f}{images:>9}{z:>8}{evaluations:>14}"


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--run", default="runs/digits", help="run folder (default: %(default)s)")
    parser.add_argument("--images", type=int, help="only so many of the test set")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/digits_bits.txt"))
    options = parser.parse_args()
    source, split = Run(options.run), digits()
    objective, test = source.load(), split.test[: options.images]
    model, decoder = objective.model, objective.decoder
    assert decoder is not None
    schedule = Linear(objective.schedule.logsnr_max, objective.schedule.logsnr_min)
    n, dims, said = len(test), test[0].numel(), list[str]()
    setting = {"schedule": schedule, "decoder": decoder}

    def tell(text: str) -> None:
        said.append(text)
        say(text)

    def counted(report: Report) -> str:
        return f"{report.protocol['evaluations']:,}"

    tell(
        f"python {' '.join(sys.argv)}\ntorch {torch.__version__}; trained for "
        f"{source.config.steps} steps; {n} test images"
    )
    tell(f"\n{'bits/dim':<46}{'value':>9}{'± MC':>9}{'± images':>9}{'z':>8}{'evaluations':>14}")
    started = time.time()
    whole = evaluate(model, test, **setting, tolerance=0.002)
    tell(line("continuous time, everything", whole.total, counted(whole)))
    plain = evaluate(
        model, test, **setting, plan=VarianceReduction.plain(), draws=256, replicates=4
    )
    tell(line("  independent times, nothing else", plain.total, counted(plain), whole.total))
    chain = evaluate(model, test, **setting, steps=MANY, tolerance=0.002, seed=1)
    tell(line(f"  chain of {MANY:,} steps", chain.total, counted(chain), whole.total))

    def one_pass(t: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return elbo(model, test, **setting, t=t, generator=generator).total

    with evaluating(model):
        grid = shared_grid(one_pass, n, 400, dims)
        tell(line("  VDM's grid, one offset for all images", grid, f"{400 * n:,}", whole.total))
        few = evaluate(model, test, **setting, steps=STEPS, tolerance=0.002)
        tell("\n" + line(f"chain of {STEPS} steps, drawn steps", few.total, counted(few)))

        def every_step(generator: torch.Generator) -> torch.Tensor:
            return elbo(
                model,
                test,
                **setting,
                steps=STEPS,
                draws=STEPS,
                estimator=MonteCarlo(),
                generator=generator,
            ).total

        sampled = repeated(every_step, 8, dims, STEPS)
    tell(
        line(
            "  sampled log-ratios, every step",
            sampled.estimate,
            f"{int(sampled.evaluations.sum()):,}",
            few.total,
        )
    )
    for samples, replicates in ((1, 4), (4, 2)):
        paths = path_importance(
            model, test, **setting, steps=STEPS, samples=samples, replicates=replicates, batch=1024
        )
        name = (
            "  log-ratios of whole paths"
            if samples == 1
            else f"  the same, importance-weighted, K = {samples}"
        )
        tell(
            line(
                name,
                paths.estimate,
                f"{int(paths.evaluations.sum()):,}",
                few.total if samples == 1 else None,
            )
        )
        if samples > 1:
            size, top = (
                paths.effective_sample_size.mean().item(),
                paths.largest_weight.mean().item(),
            )
            tell(
                f"    effective sample size {size:.2f} of {samples}, largest weight {top:.2f} "
                f"of the sum"
            )
    prior = Gaussian.fit(decoder.encode(split.train))
    for name, noise in {
        "truncated normal": TruncatedNormal(decoder, schedule.logsnr_max),
        "uniform": Uniform(decoder),
    }.items():
        found = dequantized_ode(
            model,
            test,
            dequantization=noise,
            schedule=schedule,
            prior=prior,
            tolerance=1e-4,
            audit=True,
        )
        gap = whole.with_reference(name, found).references[name].gap
        tell(
            "\n"
            + line(
                f"ODE, {name} dequantisation", found.estimate, f"{int(found.evaluations.sum()):,}"
            )
        )
        tell(line("  continuous bound minus this", gap, ""))
        moved = found.protocol["half the tolerance changes the mean"]
        tell(
            f"    NFE {found.protocol['NFE']}, half the tolerance of 1e-4 changes the mean by "
            f"{moved:.1e}"
        )
    tell(f"\n{time.time() - started:.0f} s on one thread of a shared machine")
    if options.images is None:
        options.out.write_text("\n".join(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    replace_unencodable()
    main()
