"""What an annotator or an author of completions teaches: a small judge trained again without its pairs. No torch.

In reading order:

- ``token_features.py``: which tokens a completion holds
- ``linear_head.py``: the judge: a linear reward over features, fitted to pairs, and again without some of them
- ``leave_out.py``: the change on held-out pairs by leaving out each annotator and each author
"""
