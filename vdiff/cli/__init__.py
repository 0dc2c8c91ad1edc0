"""The command line: `vdiff <command> …`, each command a module with `add(parser)` and `run(options)`."""

import argparse
import io
import sys
from collections.abc import Sequence

from vdiff.cli import describe, evaluate, sample, verify
from vdiff.sampling import SolverError

COMMANDS = {"describe": describe, "evaluate": evaluate, "sample": sample, "verify": verify}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what it returns, 2 where an argument or a run folder is wrong, a solver gives up, or a library is missing, and
    130 after Ctrl-C.

    >>> main(["sample", "no-such-folder"])
    2
    """
    parser = argparse.ArgumentParser(prog="vdiff", description="Diffusion models as weighted evidence lower bounds.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        formatter = argparse.RawDescriptionHelpFormatter
        module.add(commands.add_parser(name, help=summary, description=module.__doc__, formatter_class=formatter))
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without λ and ± shows a question mark
    try:
        code: int = COMMANDS[options.command].run(options)
    except (TypeError, ValueError, OSError, ImportError, SolverError) as error:
        print(f"vdiff {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vdiff {options.command}: interrupted", file=sys.stderr)
        return 130
    return code


__all__ = ["main"]
