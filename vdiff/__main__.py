"""`python -m vdiff` is the command line."""

from vdiff.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
