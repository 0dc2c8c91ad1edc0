"""What a user meets: the library's own errors, not those of a shape checker that tests may run
under."""

from collections.abc import Iterator

import jaxtyping
import pytest

from .covered import ALL, covered


@pytest.fixture(autouse=True)
def _as_a_user() -> Iterator[None]:
    was = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", was)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of the faults have tests that carry their number."""
    tests = covered()
    missing = [number for number in ALL if number not in tests]
    said = f"; without one: {', '.join(map(str, missing))}" if missing else ""
    terminalreporter.write_line(
        f"faults with a numbered test: {len(ALL) - len(missing)} of {len(ALL)}, "
        f"{sum(tests.values())} tests{said}"
    )
