"""Faults of an evaluation over tokens: bytes that do not match, tokens and masks that are none,
and what is of Gaussian noise alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdiff import Denoiser, hybrid_loss
from vdiff.chain import path_bound, vlb
from vdiff.decoder import Categorical, DiscretizedGaussian
from vdiff.discrete import Masked, TokenDenoiser, Uniform
from vdiff.likelihood import (
    NoiseNorm,
    TruncatedNormal,
    VarianceReduction,
    compare,
    dequantized_ode,
    evaluate,
    immse,
    log_prob,
    ode_likelihood,
    path_gap,
    path_importance,
)
from vdiff.oracle import Gaussian
from vdiff.parameterization import X
from vdiff.profile import Profile
from vdiff.schedule import Cosine

from .common import assert_refused

SCHEDULE = Cosine(9.0, -9.0)
TEXTS = torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(0))
COUNT = "[len(text.encode()) for text in texts]"


def model(weight: float = 0.0) -> TokenDenoiser:
    network = nn.Embedding(6, 5)
    nn.init.constant_(network.weight, weight)
    return TokenDenoiser(network, Masked(5))


@pytest.mark.parametrize(
    ("error", "counted", "words"),
    [
        (ValueError, [1, 2], ("have a number for each of 3 texts", "got 2", COUNT)),
        (ValueError, [3, 0, 1], ("be at least 1 for each text", "got 0 for text 1", COUNT)),
        (ValueError, torch.tensor([3, 2, -1]), ("be at least 1", "got -1 for text 2", COUNT)),
        (ValueError, 0, ("be at least 1", "got 0", COUNT)),
        (TypeError, torch.ones(3), ("be a whole number for each text", "float32", COUNT)),
        (TypeError, torch.ones(3, 4).long(), ("be a whole number for each text", "(3, 4)")),
        (TypeError, ["a", "b", "c"], ("be a whole number for each text", "'a'", COUNT)),
        (TypeError, 4.3, ("be a whole number for each text, or one for all", "4.3", COUNT)),
        (TypeError, True, ("be a Python int", "True")),
    ],
)
def test_bytes_that_do_not_match_the_texts(
    error: type[Exception], counted: Any, words: tuple[str, ...]
) -> None:
    with assert_refused(error, "evaluate", "bytes", *words):
        evaluate(model(), TEXTS, bytes=counted)


def test_bytes_of_images_and_bytes_that_were_not_given() -> None:
    images, decoder = torch.randint(0, 17, (3, 2)), Categorical(17)
    with assert_refused(
        ValueError, "evaluate", "bytes", "be left out for data that is not tokens"
    ):
        evaluate(
            Denoiser(lambda z, t: z, X()), images, schedule=SCHEDULE, decoder=decoder, bytes=9
        )
    report = evaluate(model(), TEXTS, draws=8)
    with pytest.raises(ValueError, match=r"argument 'bytes' must be given to evaluate.*encode\("):
        _ = report.bits_per_byte


@pytest.mark.parametrize(
    ("error", "data", "words"),
    [
        (TypeError, TEXTS.float(), ("be integer tokens", "float32", "data.long()")),
        (TypeError, TEXTS.bool(), ("be integer tokens", "bool")),
        (ValueError, TEXTS + 1, ("lie in 0 … 4", "to 5", "the mask is no value of the data")),
        (ValueError, TEXTS - 1, ("lie in 0 … 4", "-1 to")),
        (ValueError, TEXTS[0], ("have shape (batch, …)", "(4,)")),
        (TypeError, TEXTS.tolist(), ("be a torch.Tensor", "list")),
    ],
)
def test_texts_that_are_no_tokens(
    error: type[Exception], data: Any, words: tuple[str, ...]
) -> None:
    for call in (
        lambda: evaluate(model(), data),
        lambda: compare(model(), model(), data),
    ):
        with assert_refused(error, ("evaluate", "compare"), "data", *words):
            call()


def test_the_mask_s_own_token_in_the_data() -> None:
    inside = TokenDenoiser(nn.Embedding(5, 5), Masked(5, mask=2))
    with assert_refused(ValueError, "evaluate", "data", "hold no mask", "got the mask, 2"):
        evaluate(inside, torch.tensor([[0, 1, 2, 3]]))


@pytest.mark.parametrize("word", ["mask", "absent"])
@pytest.mark.parametrize(
    ("error", "mask", "words"),
    [
        (ValueError, torch.ones(3, 5) > 0, ("broadcast over data, (3, 4)", "(3, 5)")),
        (ValueError, torch.ones(2, 4) > 0, ("broadcast over data, (3, 4)", "(2, 4)")),
        (TypeError, torch.ones(3, 4), ("be a bool tensor", "float32")),
    ],
)
def test_masks_of_another_shape(
    word: str, error: type[Exception], mask: Tensor, words: tuple[str, ...]
) -> None:
    with assert_refused(error, "evaluate", word, *words):
        arguments: dict[str, Any] = {word: mask}
        evaluate(model(), TEXTS, **arguments)


def test_a_mask_that_models_nothing() -> None:
    what = "leave a modelled dimension in one text or more"
    with assert_refused(ValueError, "evaluate", "mask", what, "none"):
        evaluate(model(), TEXTS, mask=torch.zeros(4).bool())


@pytest.mark.parametrize(
    ("argument", "given", "words"),
    [
        ("decoder", Categorical(5), ("be left out for tokens", "the process decodes tokens")),
        (
            "controls",
            VarianceReduction(controls=(NoiseNorm(),)),
            ("be left out for tokens", "NoiseNorm()", "controls=()"),
        ),
        (
            "profile",
            Profile(logsnr_max=5.0, logsnr_min=-5.0),
            ("be left out for tokens", "diagnostics"),
        ),
    ],
)
def test_what_is_of_gaussian_noise(argument: str, given: Any, words: tuple[str, ...]) -> None:
    with assert_refused(ValueError, "evaluate", argument, *words):
        evaluate(model(), TEXTS, **{"plan" if argument == "controls" else argument: given})


CALLS: dict[str, Callable[[TokenDenoiser], object]] = {
    "ode_likelihood": lambda m: ode_likelihood(m, TEXTS, schedule=SCHEDULE),
    "log_prob": lambda m: log_prob(m, TEXTS, schedule=SCHEDULE),
    "immse": lambda m: immse(m, TEXTS, schedule=SCHEDULE, gaussian=Gaussian([0.0], [1.0])),
    "path_importance": lambda m: path_importance(
        m, TEXTS, schedule=SCHEDULE, decoder=Categorical(5), steps=4, samples=2
    ),
    "dequantized_ode": lambda m: dequantized_ode(
        m, TEXTS, schedule=SCHEDULE, dequantization=TruncatedNormal(Categorical(5), 9.0)
    ),
    "hybrid_loss": lambda m: hybrid_loss(m, TEXTS, schedule=SCHEDULE, steps=4),
    "vlb": lambda m: vlb(
        m, TEXTS, schedule=SCHEDULE, steps=4, decoder=DiscretizedGaussian(5, uses_network=True)
    ),
    "path_bound": lambda m: path_bound(
        m, TEXTS, schedule=SCHEDULE, steps=4, decoder=Categorical(5)
    ),
}


@pytest.mark.parametrize("function", CALLS)
def test_what_has_no_meaning_for_tokens_names_what_has(function: str) -> None:
    hint = "evaluate(…) and elbo(…) give the bound over tokens"
    words = "be a model of real numbers", "Masked(5)", hint
    with assert_refused(ValueError, function, "model", *words):
        CALLS[function](model())


def test_models_of_other_data_are_not_compared() -> None:
    wide = TokenDenoiser(nn.Embedding(7, 6), Uniform(6))
    words = "be over the same tokens", "Masked(5) and Uniform(6)"
    with assert_refused(ValueError, "compare", "other", *words):
        compare(model(), wide, TEXTS)
    images = Denoiser(lambda z, t: z, X())
    words = "be over the same tokens", "Masked(5) and real numbers"
    with assert_refused(ValueError, "compare", "other", *words):
        compare(model(), images, TEXTS, schedule=SCHEDULE, decoder=(None, Categorical(5)))
    with assert_refused(ValueError, "path_gap", "decoder", "be left out for tokens"):
        path_gap(model(), TEXTS, paths=[SCHEDULE, SCHEDULE], decoder=Categorical(5))


def test_a_bare_network_is_no_model_of_tokens() -> None:
    with assert_refused(TypeError, "evaluate", "schedule", "be a Schedule", "TokenDenoiser"):
        evaluate(nn.Embedding(6, 5), TEXTS)


def test_a_network_that_is_not_finite_is_named_with_its_text() -> None:
    where = "NaN or infinity on text 0 at λ ="
    with assert_refused(ValueError, "evaluate", "model", "give a finite bound", where):
        evaluate(model(weight=torch.nan), TEXTS)


def test_a_switch_that_is_no_bool() -> None:
    with assert_refused(TypeError, "VarianceReduction", "any_order", "be a bool", "None"):
        VarianceReduction(any_order=None)  # type: ignore[arg-type]
