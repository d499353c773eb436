"""The folder of a run: what is in it, and what is done to it without a cluster. No Ray here.

In reading order:

- ``run_identity.py``: what decides a run's result (``run.json``), and how two runs differ
- ``run_dir.py``: names, claim and summary (``summary.json``) of a run
- ``run_plan.py``: what is decided before any worker starts
- ``preview.py``: what a run will do, as its first lines and its dry run say it
- ``recovery.py``: adds up the events of a command: restarts, resumes, recoveries
- ``event_log.py``: writes the events to ``metrics-*.jsonl`` and TensorBoard's files
- ``trackers/``: MLflow, Weights & Biases and Trackio
- ``ray_snapshot.py``: reads and writes Ray Train's private list of committed checkpoints
- ``checkpoints.py``: lists the checkpoints: committed, corrupt, uncommitted
- ``repair.py``: repairs the list of checkpoints after a crash
- ``folder_transfer.py``: copies, moves and removes folders of a run
- ``best_checkpoint.py``: keeps a copy of the best checkpoint
- ``export_run.py``: exports a checkpoint as a Hugging Face model
"""
