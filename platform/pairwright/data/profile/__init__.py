"""An annotations table -> the figures of a person's look at it, and a page of them: sums that add, no ray, no torch."""
