"""Fixtures of small models."""

from architectures import load, small_model

__all__ = ["load", "small_model"]
