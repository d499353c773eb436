"""Pairwright: from ranked annotations to a reward model, on a laptop or on a Ray cluster."""

__version__ = "0.1.0"
