"""Numbers on the pages are those of the result files, rounded: a file that is measured again fails
a page that quotes the old one."""

import re
from pathlib import Path

import pytest

from vdiff.theorems import THEOREMS

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
EVALUATING, SAMPLERS, LEARNED, TRAINING, RESULTS = (
    f"docs/{name}.md"
    for name in ("evaluating", "samplers", "learned-schedule", "training", "results")
)
MOONS, LADDER, ORDERS, BITS = "two_moons.txt", "ladder.md", "step_order.txt", "digits_bits.txt"
COSTS, FLOAT32, LOSSES, STEP = (
    "evaluation_cost",
    "sampler_rounding.txt",
    "loss_overhead_cpu.txt",
    "train_step_cpu.txt",
)
SMALL, SCHEDULES, COVERAGE = "patches_small.txt", "learned_schedule.txt", "coverage.txt"

CLAIMS = [  # page, the text whose groups hold the numbers, the result file, what its lines contain
    *((RESULTS, rf"\| {re.escape(row)} \|(.*)", LOSSES, line) for row, line in (
        ("hand-written ε-MSE", "hand-written"),
        ("linear, ε, ELBO", "linear, ε, ELBO"),
        ("cosine, v, sigmoid", "cosine, v, sigmoid"),
        ("EDM", "EDM"),
        ("cosine, ε, MSE × min-SNR", "cosine, ε, MSE x min-SNR"),
        ("γ_η as a spline, learning", "γ_η: spline  "),
        ("γ_η as VDM's network, learning", "γ_η: monotone, 1024 wide"),
        ("adaptive density, learning", "adaptive"),
        ("full bound, 256 levels", "full bound, 256 levels"),
        ("full bound, learned ends", "full bound, learned ends"),
        ("hybrid with a learned range", "hybrid, learned range"),
        ("hybrid with its decoder", "hybrid, its decoder"),
        ("plain MSE, network of a field", "network of a field"),
    )),
    (RESULTS, r"log-ratio has (\S+ ± \S+) \(clean end\) to (\S+ ± \S+) \(noisy end\)", MOONS,
    "MC over RB, at 12 t"),
    (RESULTS, r"reaches (\S+ ± \S+) nats where the\s+closed form reaches (\S+ ± [\d.]+\d)",
    MOONS, "after 3,000 steps RB"),
    (RESULTS, r"the order turns:\s+(\S+ against \S+)", MOONS, "  1000   "),
    (RESULTS, r"(\S+ ± \S+) bits/dim over\s+the small variance", LADDER,
    "ε/range/hybrid − ε/small/MSE"),
    (RESULTS, r"the small variance and (\S+ ± \S+) over the large", LADDER,
    "ε/range/hybrid − ε/large/MSE"),
    (RESULTS, r"the best bound is (\S+ ± \S+) in place of", LADDER, "| ε/range/hybrid ×14 |"),
    (RESULTS, r"in place of (\S+ ± \S+)\.\n", LADDER, "| ε/range/hybrid |"),
    (RESULTS, r"has the best samples,\s+(\S+ ± \S+) bits/dim worse", LADDER,
    "Likelihood and samples part ways"),
    *((SAMPLERS, rf"\| {row}[^|]*\|[^|]*\|(.*)", ORDERS, line) for row, line in (
        (r"`adams_bashforth`, u \(the default\) \| `logistic", "adams_bashforth 3, u"),
        (r"`adams_bashforth`, v", "adams_bashforth 3, v"),
        (r"`adams_bashforth`, ε \| `logistic", "adams_bashforth 3, ε"),
        (r"`adams_bashforth`, x", "adams_bashforth 3, x"),
        ("third-order Adams–Bashforth", "AB3, rectified"),
        ("`dpmpp_2m`", "dpmpp_2m  "),
        (r"`heun` \| `logistic", "heun  "),
        (r"`ddim` \| `logistic", "ddim  "),
    )),
    *((SAMPLERS, rf"\| {row} \|([^`]*)\|\n", FLOAT32, line) for row, line in (
        (r"`adams_bashforth`, u \(the default\)", "adams_bashforth  "),
        (r"`adams_bashforth`, ε", "adams_bashforth, ε"),
        ("`heun`", "heun  "),
        ("`ddim`", "ddim  "),
    )),
    *((SAMPLERS, rf"\| {row} \|(.*)", FLOAT32, line) for row, line in (
        ("1e-5, the default", "1e-05, dopri5"),
        ("1e-7", "1e-07, dopri5"),
        ("1e-9, `dopri8`", "1e-09, dopri8"),
    )),
    *((EVALUATING, rf"\| {row}[^|]*\|(.*)", BITS, line) for row, line in (
        ("bound in continuous time", "continuous time, everything"),
        ("independent times and nothing", "independent times"),
        ("chain of a million steps", "chain of 1,000,000"),
        ("VDM's grid with one offset", "VDM's grid"),
        ("bound of a chain of 64", "drawn steps"),
        ("sampled log-ratios of every", "sampled log-ratios"),
        ("log-ratios of whole paths", "log-ratios of whole paths"),
        ("importance-weighted over those", "importance-weighted"),
        ("flow, truncated normal", "ODE, truncated normal"),
        ("flow, uniform", "ODE, uniform"),
    )),
    (EVALUATING, r"The first bound lies (\S+ ± \S+) \(Monte Carlo\) ± (\S+) \(images\)", BITS,
    "continuous bound minus this"),
    (EVALUATING, r"useless: (\S+) bits on digits", BITS, "ODE, uniform"),
    (EVALUATING, r"bits on digits where the other is (\d\S+)\. ", BITS, "ODE, truncated"),
    (EVALUATING, r"covers the truth in\s+(\S+) to (\S+) %", COVERAGE, "plan "),
    (EVALUATING, r"by plan, in (\S+) % where a tolerance", COVERAGE, "a tolerance"),
    (EVALUATING, r"the one over images in (\S+) %", COVERAGE, "over images"),
    (LEARNED, r"the bound has (\S+, \S+ and \S+) times\s+less variance than under `Linear`",
    SCHEDULES, "linear  "),
    (LEARNED, r"under `Linear`, (\d+ to \d+) times less than under `Cosine`", SCHEDULES,
    "cosine  "),
    (LEARNED, r"and (\d+ to \d+) times less than under `LinearBeta`", SCHEDULES, "linear-β  "),
    (LEARNED, r"`Linear` the networks ended at (\S+ to \S+) bits", SCHEDULES, "linear  "),
    (LEARNED, r"`Cosine` at (\S+ to \S+),", SCHEDULES, "cosine  "),
    (LEARNED, r"`Adaptive` at (\S+ to \S+),", SCHEDULES, "adaptive  "),
    (TRAINING, r"`vdm`, batch 1 \| ([^|]*\|.*)", STEP, ""),
    (TRAINING, r"`small`, batch 8 \| ([^|]*\|.*)", STEP, ""),
    (TRAINING, r"reaches (\S+) bits/dim on 256 test", SMALL, "total   "),
    (TRAINING, r"patches, ± (\S+) \(Monte Carlo\) and ± (\S+) \(over images\)", SMALL, "total   "),
    (TRAINING, r"a Gaussian of full covariance has (\S+) there", SMALL, "full-covariance"),
    (TRAINING, r"a histogram of each pixel (\S+)\s", SMALL, "per-pixel"),
]  # fmt: skip


def numbers(text):
    return [
        number.replace("−", "-").replace(",", "")
        for number in NUMBER.findall(text.replace("–", " "))
    ]


def rounds_to(value, written):
    """Whether a value, rounded as far as a number is written, is that number; zeros at the end of
    an integer may be rounding."""
    mantissa, _, exponent = written.partition("e")
    places = len(mantissa.partition(".")[2])
    zeros = 0 if "." in mantissa else len(mantissa) - len(mantissa.rstrip("0"))
    return abs(value - float(written)) <= 0.501 * 10.0 ** (int(exponent or 0) + zeros - places)


def lines(file, contains):
    return [
        line
        for line in (ROOT / "benchmarks/results" / file).read_text(encoding="utf-8").splitlines()
        if contains in line
    ]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim[0]}, {claim[1][:40]}")
def test_a_number_of_a_page_is_in_its_result_file(claim):
    page, pattern, file, contains = claim
    (found,) = re.finditer(pattern, (ROOT / page).read_text(encoding="utf-8"))
    written = [number for group in found.groups() for number in numbers(group)]
    assert written
    values = [abs(float(number)) for line in lines(file, contains) for number in numbers(line)]
    missing = [
        n for n in written if not any(rounds_to(value, n.removeprefix("-")) for value in values)
    ]
    assert not missing, (missing, lines(file, contains))


def test_the_number_of_theorems_is_theirs():
    assert f"| {len(THEOREMS)} theorems, checked" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_number_that_is_not_there_is_seen():
    assert rounds_to(12857.6, "12900")
    assert rounds_to(0.0019, "0.002")
    assert rounds_to(4.4951e-4, "4.5e-4")
    assert not rounds_to(1.7540, "1.9772")
    assert not rounds_to(0.46, "0.1")


def test_the_table_of_losses_names_the_command_of_its_file():
    command = lines(LOSSES, "$ python")[0].partition("$ ")[2].partition("#")[0].strip()
    assert f"`{command}`" in (ROOT / RESULTS).read_text(encoding="utf-8")
    assert command.removeprefix("python ") in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_quartiles_of_the_table_of_losses():
    kept = [
        line
        for _, pattern, file, contains in CLAIMS
        if file == LOSSES
        for line in lines(file, contains)
    ]
    away = [
        max(high - median, median - low)
        for median, low, high in ([float(n) for n in numbers(line)][-6:-3] for line in kept)
    ]
    small, large = (
        [a for a, line in zip(away, kept, strict=True) if (line in kept[::2]) == first]
        for first in (True, False)
    )
    page = (ROOT / RESULTS).read_text(encoding="utf-8")
    said = (
        r"Quartiles are up to ([\d.]+) away for the MLP \(([\d.]+) for VDM's network\) and up to "
        r"([\d.]+)"
    )
    few, network, unet = re.search(said, page).groups()
    *_, second, widest = sorted(small)
    assert [f"{second:.2f}", f"{widest:.1f}", f"{max(large):.2f}"] == [few, network, unet]
