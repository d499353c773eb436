"""Evaluates and uses exported reward models. No Ray.

In reading order:

- ``load_exported.py``: an exported model, verified, and the rules for its input
- ``rewards.py``: rewards of groups under a token budget, shared by evaluation and scoring
- ``evaluate.py``: a split's groups as exact sums: the model's, and those of the length-only baseline
- ``evaluation_report.py``: these sums as ``report.json`` and as a table in plain text
- ``requests.py``: input lines and table rows as scoring requests
- ``score.py``: the rewards of scoring requests
- ``reference_rewards.py``: mean and standard deviation of rewards on reference completions
- ``score_files.py``: the output of a scoring run
"""
