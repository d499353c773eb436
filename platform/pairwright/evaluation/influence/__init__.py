"""What an annotator or an author of completions has taught a model: the reward head refitted without its pairs.

In reading order:

- ``frozen_features.py``: the last hidden state of each completion, which the reward head is applied to
- ``linear_head.py``: a reward head fitted to pairs, and fitted again without some of them
- ``leave_out.py``: the change on held-out pairs by leaving out each annotator and each author
"""
