"""Optional libraries, which an extra of the package installs."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import libraries of an extra in this block. A missing one raises an ImportError that says
    what to install.

    >>> with extra("train"):
    ...     import no_such_library
    Traceback (most recent call last):
        ...
    ImportError: no_such_library is not installed: pip install 'vdiff-torch[train]'
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        what = f"{error.name} is not installed" if missing else str(error)
        raise ImportError(f"{what}: pip install 'vdiff-torch[{name}]'", name=error.name) from error


__all__ = ["extra"]
