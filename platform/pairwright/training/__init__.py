"""Trains a reward model on one rank of many. DeepSpeed, no Ray.

In reading order:

- ``order.py``: which groups a step trains on, as a pure function of the step
- ``schedule.py``: the number of steps, and the learning rate of each
- ``context.py``: what the loop needs from whoever started it: rank, checkpoints, reports
- ``loop.py``: steps, evaluations and checkpoints, from the latest checkpoint to the last step
- ``step.py``: one optimizer step on a global batch, and one evaluation of a split
- ``global_batch.py``: this rank's micro-batches of a global batch, by its plan
- ``engine.py``: the DeepSpeed engine: rewards, gradients, the optimizer step, saving and loading
- ``deepspeed_workarounds.py``: workarounds for DeepSpeed 0.19.8, each with its defect
- ``collectives.py``: one rank's error, raised on every rank
- ``checkpoint.py``: writes and verifies checkpoints
- ``checkpoint_shards.py``: reads shards safely, and consolidates them into one state dict
- ``universal_checkpoint.py``: converts a checkpoint for another number of ranks
"""
