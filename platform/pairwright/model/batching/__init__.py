"""Plans micro-batches: which rank computes which completions when. Numbers in, lists out.

In reading order:

- ``cost_model.py``: tokens and FLOPs of a forward pass, in each layout
- ``plan.py``: the micro-batch schedule of a step; groups over the token budget are split
- ``bin_packing.py``: packs parts into micro-batches so that ranks finish together
- ``memory_model.py``: an estimate of the memory of a rank, and of the size of a checkpoint
- ``prefix_groups.py``: groups texts that begin with the same tokens, for serving
"""
