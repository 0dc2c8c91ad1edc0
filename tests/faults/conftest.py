"""What a user meets: the library's own errors, not those of a shape checker that tests may run
under."""

from collections.abc import Iterator

import jaxtyping
import pytest
from cifar_files import small

from vdiff.data import download as downloads
from vdiff.data.cifar10 import Published

from .covered import ALL, covered


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


@pytest.fixture
def form(monkeypatch: pytest.MonkeyPatch) -> Published:
    """CIFAR-10 as it is published, but for its size and its checksums."""
    made = small()[0]
    monkeypatch.setattr("vdiff.data.cifar10.PUBLISHED", made)
    return made


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between attempts, and no way out of this machine."""
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("vdiff.data.cifar10.HOME", "http://127.0.0.1:9/")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of the faults have tests that carry their number."""
    tests = covered()
    missing = [number for number in ALL if number not in tests]
    said = f"; without one: {', '.join(map(str, missing))}" if missing else ""
    terminalreporter.write_line(
        f"faults with a numbered test: {len(ALL) - len(missing)} of {len(ALL)}, "
        f"{sum(tests.values())} tests{said}"
    )
