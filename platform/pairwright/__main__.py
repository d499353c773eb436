"""Runs the command line as ``python -m pairwright``."""

from pairwright.cli.main import main

main()
