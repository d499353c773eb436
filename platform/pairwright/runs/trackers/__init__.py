"""Experiment trackers: a run's metrics and configuration in MLflow, Weights & Biases and Trackio.

In reading order:

- ``tracked_values.py``: what a tracker gets: metrics under TRL's names, and the configuration as flat parameters
- ``tracker_backends.py``: one class for each tracker behind one protocol
- ``wandb_offline.py``: which steps W&B's offline folders hold
- ``tracking.py``: delivers to the trackers in threads of their own, so that none can slow or end a run
- ``tracked_page.py``: the page of an evaluation, kept with the run of its model
"""
