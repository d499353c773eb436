"""Weighted pairs: rankings of whole groups become pairs.

A path to walk:
``expand``            expands an annotations version into a pairs version
``exclusions``        drops annotations and completions by name or text
``near_duplicates/``  drops groups with prompts similar to held-out ones
``build_pairs``       one row a group, with its pairs
``comparisons``       counts and weights comparisons, in numpy
``flat_export``       exports flat rows for other trainers
"""
