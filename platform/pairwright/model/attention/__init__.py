"""Computes the attention of packed sequences, in which each completion attends to its prompt and to itself.

In reading order:

- ``interface.py``: registration in transformers, and the choice of the kernel
- ``sdpa.py``: the reference kernel, on any device
- ``gpu.py``: the kernel for CUDA GPUs, by variable-length flash attention
- ``cpu.py``: the kernel for CPUs; ``model.cpu_kernels = false`` switches it and the next two off
- ``cpu_backward.py``: its backward pass in half precision
- ``last_token.py``: a decoder's last layer, computed only where rewards are read
"""
