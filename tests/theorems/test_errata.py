"""The errata of the sources: where they point, what they quote, and the numbers of their evidence
by other means."""

import math
import re

import pytest
import torch

from vdiff.theorems import ERRATA, verify
from vdiff.theorems.errata import EXTRACTED, MISPRINTS
from vdiff.theorems.errata.erratum import BLOG, BOOK, CHAPTER, NOTE, SLIDES
from vdiff.theorems.pages import errata_page

ROWS = [*ERRATA.values(), *MISPRINTS, *EXTRACTED]
# what the book has: the subsections of each section, and the numbered equations of each chapter
SUBSECTIONS = {
    **{
        "1.1": 6,
        "1.2": 4,
        "1.3": 4,
        "1.4": 3,
        "1.5": 0,
        "2.1": 2,
        "2.2": 2,
        "2.3": 5,
        "2.4": 0,
        "3.1": 2,
        "3.2": 4,
    },
    **dict.fromkeys(
        (
            "4.1",
            "4.2",
            "4.3",
            "4.4",
            "4.5",
            "4.6",
            "5.1",
            "5.2",
            "5.3",
            "5.4",
            "5.5",
            "5.6",
            "6.1",
            "6.2",
        ),
        0,
    ),
}
EQUATIONS = {1: 30, 2: 41, 3: 11, 4: 7, 5: 8, 6: 4}
HEADINGS = {
    BLOG: (
        "The Evidence Lower Bound",
        "But Why?",
        "The Hidden Variance Reduction",
        "Variance Evolution",
    ),
    NOTE: (
        "the claim",
        "The Variational Bound",
        "The Simple Loss Drops the Weight",
        "Why the Reweighting Helps",
        "What This Identity Buys You",
    ),
}


def sections(text):
    return re.findall(
        r"\d+(?:\.\d+)+", " ".join(re.findall(r"(?:sections? )((?:[\d.]+(?:, | and )?)+)", text))
    )


def equations(text):
    return re.findall(
        r"\d+(?:\.\d+)?", " ".join(re.findall(r"eq\. ((?:[\d.]+(?:, | and | to )?)+)", text))
    )


def exists(source, section):
    if source == CHAPTER:
        return section in ("14.5.1", "14.5.2", "14.5.3", "14.5.4", "14.5.5", "14.5.6")
    chapter, part, *below = section.split(".")
    return f"{chapter}.{part}" in SUBSECTIONS and all(
        int(n) <= SUBSECTIONS[f"{chapter}.{part}"] for n in below
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.source[:8]}, {row.where[:40]}")
def test_what_a_row_points_to_exists(row):
    if row.source in (BOOK, CHAPTER):
        assert all(
            exists(row.source, section) for section in sections(f"{row.where}; {row.right}")
        )
    numbers = equations(row.where)
    if row.source == BOOK:
        assert all(int(n.split(".")[1]) <= EQUATIONS[int(n.split(".")[0])] for n in numbers)
    if row.source == SLIDES:
        assert all(int(n) in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13) for n in numbers)
    if row.source in HEADINGS:
        assert any(heading in row.where for heading in HEADINGS[row.source])


def test_a_pointer_that_leads_nowhere_is_seen():
    assert sections("sections 3.1 and 3.1.1") == ["3.1", "3.1.1"]
    assert equations("eq. 1.22, 1.23 and 5.8; also eq. 3.5 to 3.7") == [
        "1.22",
        "1.23",
        "5.8",
        "3.5",
        "3.7",
    ]
    assert not exists(BOOK, "6.4")
    assert not exists(BOOK, "3.2.5")


def test_the_page_has_every_row_and_says_what_is_left_open():
    page = errata_page()
    lines = page.splitlines()
    for row in ROWS:
        start = "| " + " | ".join(
            cell.replace("|", "\\|") for cell in (row.where, row.printed, "")
        )
        (line,) = (line for line in lines if line.startswith(start))
        left_open = getattr(row, "left_open", False)
        assert ("*What holds:*" in line) == left_open
        assert ("*Printed form:*" in line) == (hasattr(row, "evidence") and not left_open)
    assert sum(erratum.left_open for erratum in ERRATA.values()) < len(ERRATA) / 2


def evidence(name):
    return [
        float(n.replace("−", "-")) for n in re.findall(r"[−-]?\d+\.\d+", ERRATA[name].evidence)
    ]


def test_the_reductions_of_the_variance():
    def ratio(steps, level):
        return 1 + 2 * (1 + math.exp(-level)) / math.expm1(18.3 / steps)

    said = ERRATA["reduction-is-no-constant"].evidence
    for steps, digits in ((1000, 0), (100, 1)):
        assert ", ".join(f"{ratio(steps, level):.{digits}f}" for level in (8, 0)) in said
        assert f"{ratio(steps, -4):.{digits}f}" in said


def test_a_better_bound_with_a_wider_gap():
    mean, variance, x = 0.5, 0.3, 2.0
    bounds, gaps = [], []
    for theta in (0.5, 1.0):
        kl = 0.5 * (variance + mean**2 - 1 - math.log(variance))
        bounds.append(
            -0.5 * (math.log(2 * math.pi) + (x - theta * mean) ** 2 + theta**2 * variance) - kl
        )
        log_p = -0.5 * (math.log(2 * math.pi * (1 + theta**2)) + x**2 / (1 + theta**2))
        gaps.append(log_p - bounds[-1])
    assert evidence("raising-the-bound-may-widen-the-gap")[2:] == pytest.approx(
        [*bounds, *gaps], abs=6e-4
    )


def test_betas_that_fall_too_fast():
    product = math.prod(1 - 2.0**-t for t in range(1, 60))
    assert evidence("betas-may-fall-too-fast") == pytest.approx([product], abs=5e-5)


def test_a_reverse_step_of_two_points():
    """By a histogram of the joint draws of (x_{t−1}, x_t), those with x_t near zero."""
    generator, n = torch.Generator().manual_seed(0), 4_000_000
    sign = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    low, high = torch.sigmoid(torch.tensor([-1.0, 2.0])).tolist()  # α² at x_t and at x_{t−1}
    before = high**0.5 * sign + (1 - high) ** 0.5 * torch.randn(n, generator=generator)
    after = (low / high) ** 0.5 * before + (1 - low / high) ** 0.5 * torch.randn(
        n, generator=generator
    )
    near = before[after.abs() < 0.02].abs().double()
    at = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    width = 0.05
    density = ((near[:, None] - at).abs() < width).double().mean(0) / (2 * width)
    density[1:] /= 2  # |x_{t−1}| folds two places into one
    values = evidence("the-reverse-is-no-gaussian")
    said, gaussian = torch.tensor(values[-6:-3]).double(), torch.tensor(values[-3:]).double()
    torch.testing.assert_close(density / 2 ** (at == 0).double(), said, rtol=0, atol=0.02)
    spread = near.square().mean()
    torch.testing.assert_close(
        (-0.5 * at.square() / spread).exp() / (2 * math.pi * spread).sqrt(),
        gaussian,
        rtol=0,
        atol=5e-3,
    )


def test_pixels_of_which_the_steps_are_averaged():
    right, printed = verify(names=["pixels-are-summed"], errata=True)
    assert [right.sides.left.item(), printed.sides.left.item()] == pytest.approx(
        evidence("pixels-are-summed")[1:], abs=6e-4
    )


def test_the_worst_case_of_the_forward_variance_is_shown():
    right, printed = verify(names=["forward-variance-is-no-upper-bound"], errata=True)
    assert [verdict.sides.worst[0] for verdict in (printed, right)] == pytest.approx(
        [-0.56549, 0.023248], abs=1e-5
    )
