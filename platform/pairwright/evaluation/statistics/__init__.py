"""The statistics of an evaluation: pure functions of numpy arrays, without I/O and without torch.

In reading order:

- ``pair_arrays.py``: groups, completions and pairs as flat arrays, and ranks and worth that follow from them
- ``intervals.py``: 95 % intervals over prompts
- ``pair_metrics.py``: accuracy, log loss and reward margin of any part of the pairs
- ``ceiling.py``: how well annotators predict each other, and how well the model predicts each of them
- ``calibration.py``: reliability, calibration error, and the temperature
- ``rank_correlation.py``: Spearman's and Kendall's correlation within groups
- ``best_of_n.py``: what the model's choice out of N is worth
- ``bias.py``: what the model prefers beyond what annotators do
- ``slices.py``: slices of the pairs, and the worst of them
- ``text_repeats.py``: texts under many prompts
- ``suspects.py``: pairs, groups and annotators that deserve a second look
- ``paired_comparison.py``: two models on the same pairs
"""
