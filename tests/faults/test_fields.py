"""Messages about fields and masks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff import Denoiser, weighted_elbo
from vdiff.errors import InvalidType, InvalidValue
from vdiff.likelihood import dequantized_ode, immse, ode_likelihood, path_importance
from vdiff.losses import Weighted
from vdiff.masks import Mixture, RandomHalf
from vdiff.oracle import GaussianMixture
from vdiff.parameterization import V
from vdiff.recipes import Recipe
from vdiff.schedule import Linear
from vdiff.times import independent


def network(z: Tensor, time: Tensor) -> Tensor:
    return z


def test_a_field_that_does_not_broadcast() -> None:
    model = Denoiser(network, V(), field=True)
    with pytest.raises(InvalidValue, match=r"logsnr.*broadcast over z, \(3, 2, 4\)"):
        model(torch.zeros(3, 2, 4), torch.zeros(3, 4, 2))


@pytest.mark.parametrize("shape", [(4,), (3, 2), (3, 2, 3), (3, 2, 4, 1), ()])
def test_a_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    model, x = Denoiser(network, V(), field=True), torch.zeros(3, 2, 4)
    for word in ("mask", "absent"):
        with pytest.raises(InvalidValue, match=rf"'{word}' must broadcast over x, \(3, 2, 4\)"):
            weighted_elbo(model, x, schedule=Linear(), **{word: torch.ones(shape).bool()})


@pytest.mark.parametrize("shape", [(4, 1, 1), (3, 3, 1), (3, 2), (2, 4)])
def test_times_of_another_shape(shape: tuple[int, ...]) -> None:
    model, x = Denoiser(network, V(), field=True), torch.zeros(3, 2, 4)
    with pytest.raises(InvalidValue, match=r"'t' must have shape \(batch,\) = \(3,\)"):
        weighted_elbo(model, x, schedule=Linear(), t=torch.full(shape, 0.5))


ORACLE = GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.6], [0.6, 1.0]]])


def test_examples_of_an_oracle() -> None:
    x, mask = torch.zeros(3, 2), torch.tensor([True, False])
    of_one = r"conditional: argument 'x' must have shape \(2,\); got "
    with pytest.raises(InvalidValue, match=of_one + r"\(3, 2\) \(one law for each: "):
        ORACLE.conditional(x, mask)
    with pytest.raises(InvalidValue, match=of_one + r"\(3,\)"):
        ORACLE.conditional(torch.zeros(3), mask[:1])
    for wrong in (x[0], torch.zeros(2, 3)):
        with pytest.raises(InvalidValue, match=r"conditional_nll: .*'x' must have shape \(n, 2\)"):
            ORACLE.conditional_nll(wrong, mask[:1])


def test_nothing_modelled_has_no_bits() -> None:
    x, what = torch.zeros(3, 2), "must leave a modelled dimension in one example or more; got none"
    with pytest.raises(InvalidValue, match=f"ode_likelihood: argument 'mask' {what}"):
        ode_likelihood(ORACLE, x, schedule=Linear(), mask=torch.zeros(2).bool())
    with pytest.raises(InvalidValue, match=f"ode_likelihood: argument 'absent' {what}"):
        ode_likelihood(ORACLE, x, schedule=Linear(), absent=torch.ones(2).bool())


@pytest.mark.parametrize("verb", [path_importance, immse, dequantized_ode])
@pytest.mark.parametrize("word", ["mask", "absent"])
def test_a_mask_where_examples_are_whole(verb: object, word: str) -> None:
    with pytest.raises(TypeError, match=f"argument '{word}' is unknown; it takes whole examples"):
        verb(ORACLE, torch.zeros(3, 2), schedule=Linear(), **{word: torch.ones(2).bool()})


def test_a_mixture_of_one_mask_that_is_no_list() -> None:
    with pytest.raises(InvalidType, match=r"'masks' must be a list of masks; got .*Mixture\(\["):
        Mixture(RandomHalf())


def test_a_recipe_has_a_weighting_and_no_loss() -> None:
    what = r"Recipe: argument 'weighting' must be a Weighting; got Weighted\(.*loss=Weighted\(…\)"
    with pytest.raises(InvalidType, match=what):
        Recipe("own", Linear(), V(), Weighted(independent=(1,)))


@pytest.mark.parametrize("dims", [1, "a", (1.0,), (True,), torch.tensor([1])])
def test_dims_that_are_no_tuple_of_dimensions(dims: Any) -> None:
    with pytest.raises(InvalidType, match="'dims' must be a tuple of dimensions of x"):
        independent(torch.zeros(4, 3, 2), dims)
