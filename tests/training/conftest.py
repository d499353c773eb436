"""Fixtures of small models, and of the runs of DeepSpeed ranks."""

from architectures import (
    full_reference,
    load,
    lora_reference,
    one_rank,
    runs,
    small_model,
    three_ranks,
    two_ranks,
    world,
)

__all__ = [
    "full_reference",
    "load",
    "lora_reference",
    "one_rank",
    "runs",
    "small_model",
    "three_ranks",
    "two_ranks",
    "world",
]
