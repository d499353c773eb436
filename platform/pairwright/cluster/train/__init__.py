"""Training on Ray: a driver, one worker for each rank, and the coordinator between them.

In reading order:

- ``driver.py``: ``pairwright train`` from the configuration to the summary
- ``trainer.py``: runs Ray Train, and starts it again after a corrupt checkpoint or a storage error
- ``ray_workarounds.py``: what Ray 2.60 needs, each with a test that fails once it is not needed
- ``coordinator.py``: the actor between ranks and driver, and all that they exchange
- ``worker.py``: one rank, from its start to the exported model
- ``ray_context.py``: what the training loop needs from Ray Train
- ``checkpoint_upload.py``: a rank's part of a checkpoint on its way to storage
- ``heartbeat.py``: heartbeats and the watchdog for hanging runs
- ``preemption.py``: signals and drained nodes
- ``monitor.py``: shows and logs the run's events, and watches for scale-up
- ``run_metrics.py``: metrics for Prometheus
- ``sweep.py``: ``pairwright sweep``, runs one after the other
"""
