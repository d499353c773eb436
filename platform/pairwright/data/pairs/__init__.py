"""Weighted pairs: rankings of whole groups become pairs.

In reading order:

- ``expand.py``: expands an annotations version into a pairs version
- ``exclusions.py``: drops annotations and completions by name or text
- ``near_duplicates/``: drops groups with prompts similar to held-out ones
- ``build_pairs.py``: one row a group, with its pairs
- ``comparisons.py``: counts and weights comparisons, in numpy
- ``flat_export.py``: exports flat rows for other trainers
"""
