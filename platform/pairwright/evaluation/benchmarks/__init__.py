"""Public benchmarks of reward models by file: each in its own layout, scored by its own rules.

In reading order:

- ``benchmark_layouts.py``: records of a benchmark as items: a prompt, right and wrong completions
- ``benchmark_files.py``: reads benchmarks, and rewards that somebody else computed
- ``benchmark_rules.py``: rewards of a benchmark's items into its published metrics
- ``benchmark_run.py``: the rewards of a model on the items, and the table
"""
