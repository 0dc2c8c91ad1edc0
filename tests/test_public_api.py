"""Every name of the door and of a room's face has an example, and every example prints what it
says."""

import doctest
import importlib
import inspect
import io
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import vdiff

MODULES = [
    vdiff,
    *(
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(vdiff.__path__, "vdiff.")
    ),
]
FACES = (vdiff.decoder, vdiff.oracle, vdiff.variance, vdiff.sampling, vdiff.weighting,
vdiff.schedule, vdiff.parameterization, vdiff.denoiser, vdiff)  # fmt: skip
NAMESPACE = {
    "torch": torch,
    **{name: getattr(face, name) for face in FACES for name in face.__all__},
}


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The classes and functions that a module makes public: its `__all__`, or whatever it defines
    without an underscore."""
    if "._" in module.__name__:
        return
    for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, name)
        if (
            inspect.isclass(value) or inspect.isfunction(value)
        ) and value.__module__ == module.__name__:
            yield f"{module.__name__}.{name}", value


PUBLIC = dict(pair for module in MODULES for pair in public(module))
FACES = {
    id(getattr(room, n)) for room in MODULES if hasattr(room, "__path__") for n in room.__all__
}
DOCTESTS = {
    t.name: t
    for module in MODULES
    for t in doctest.DocTestFinder(exclude_empty=True).find(
        module, module.__name__, globs={**NAMESPACE, **vars(module)}
    )
    if t.examples
}


def defined(module: ModuleType) -> list[object]:
    return [
        v
        for v in vars(module).values()
        if (inspect.isclass(v) or inspect.isfunction(v))
        and v.__module__ == module.__name__
        and not v.__name__.startswith("_")
    ]


def test_the_front_door_lists_what_it_has():
    assert len(set(vdiff.__all__)) == len(vdiff.__all__)
    for name in vdiff.__all__:
        value = getattr(vdiff, name)
        assert value.__module__.startswith("vdiff.")
        assert PUBLIC[f"{value.__module__}.{name}"] is value


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_everything_has_a_docstring(module):
    assert module.__doc__
    for value in () if "._" in module.__name__ else defined(module):
        assert value.__doc__, value
        members = vars(value).items() if inspect.isclass(value) else ()
        for name, member in members:
            if not name.startswith("_") and (
                inspect.isfunction(member)
                or isinstance(member, (property, classmethod, staticmethod))
            ):
                assert inspect.getdoc(getattr(value, name)), f"{value.__name__}.{name}"


@pytest.mark.parametrize("name", [name for name in PUBLIC if id(PUBLIC[name]) in FACES])
def test_every_public_name_has_an_example(name):
    assert ">>> " in (PUBLIC[name].__doc__ or ""), f"{name} has no example"


@pytest.mark.parametrize("name", DOCTESTS)
def test_the_example_prints_what_it_says(name):
    torch.manual_seed(0)
    out = io.StringIO()
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(
        DOCTESTS[name], out=out.write, clear_globs=False
    )
    assert outcome.failed == 0, out.getvalue()
