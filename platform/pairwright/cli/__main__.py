"""Runs the command line as ``python -m pairwright.cli``."""

from pairwright.cli.main import main

main()
