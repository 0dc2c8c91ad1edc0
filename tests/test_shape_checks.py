"""Shapes are checked once for each kind of call, and a wrong one is found whenever it comes."""

from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from shape_checks import checker, jaxtyped
from torch import Tensor

ONE, TWO = torch.zeros(3), torch.zeros(4)
checks: list[str] = []  # of `adds`


def counting(fn):
    """The checker, and how often its function is called."""
    checked = checker(fn)

    def called(*args, **kwargs):
        checks.append(fn.__name__)
        return checked(*args, **kwargs)

    return called


def adds():
    @jaxtyped(typechecker=counting)
    def add(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return a + b

    return add


def test_a_call_of_a_kind_that_passed_is_not_checked_again():
    """Nor is that of an inner function, which is another one in each call of the outer one."""
    for _ in range(3):
        assert adds()(ONE, ONE).shape == (3,)
    assert len(checks) == 2  # the arguments, and with them the answer
    adds()(TWO, TWO)
    assert len(checks) == 4


def test_wrong_arguments_are_found_after_right_ones():
    adds()(ONE, ONE)
    adds()(TWO, TWO)
    for wrong in [(ONE, TWO), (ONE, ONE.int()), (ONE, ONE[None]), (ONE, 1.0), (ONE, None)]:
        for _ in range(2):
            with pytest.raises(TypeCheckError, match="parameters"):
                adds()(*wrong)


def test_a_wrong_answer_is_found_after_right_ones():
    """By the same kinds of arguments; an object's state has no kind."""

    class Model:
        wrong = False

        @jaxtyped(typechecker=checker)
        def __call__(self, a: "Float[Tensor, ' n']") -> "Float[Tensor, ' n']":
            return a[:2] if self.wrong else a

    model = Model()
    for _ in range(2):
        model(ONE)
    model.wrong = True
    for _ in range(2):
        with pytest.raises(TypeCheckError, match="return value"):
            model(ONE)
    model.wrong = False
    assert model(ONE) is ONE


def test_texts_classes_and_what_containers_hold_are_kinds():
    @jaxtyped(typechecker=checker)
    def take(
        name: Literal["a", "b"],
        of: type[Tensor] = Tensor,
        pair: tuple[int, str] = (1, ""),
        many: list[Float[Tensor, " n"]] | None = None,
        by: dict[str, int] | None = None,
    ) -> None: ...

    for right in [("a",), ("b", Tensor, (2, "x"), [ONE, ONE], {"c": 1})]:
        for _ in range(2):
            take(*right)
    for wrong in [
        ("c",), ("b", int), ("b", Tensor, ("x", 2)), ("b", Tensor, (2, "x"), [TWO[None]]),
        ("b", Tensor, (2, "x"), [ONE], {"c": "1"}),
    ]:  # fmt: skip
        with pytest.raises(TypeCheckError):
            take(*wrong)


def test_a_dataclass_is_checked():
    @jaxtyped(typechecker=checker)
    @dataclass
    class Pair:
        a: Float[Tensor, " n"]
        b: Float[Tensor, " n"]

    Pair(ONE, ONE)
    with pytest.raises(TypeCheckError):
        Pair(ONE, TWO)
    assert Pair(TWO, TWO).b is TWO
