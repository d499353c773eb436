"""Computes rewards from tokens, and the loss from rewards. No DeepSpeed, no Ray.

In reading order:

- ``collate.py``: groups as a micro-batch, in one of three layouts
- ``targets.py``: the pairs and rankings of a micro-batch, the loss's other input
- ``reward_model.py``: the reward model: transformers' model with a head in float32
- ``loss.py``: Bradley-Terry, hinge and Plackett-Luce
- ``reward_metrics.py``: accuracy, log loss and reward margin, exact on any number of workers
- ``model_config.py``, ``load_model.py``: a Hugging Face checkpoint as a reward model
- ``lora.py``: low-rank adapters
- ``encoders.py``: packed sequences for encoders
- ``layout_check.py``: the fastest layout that a model computes correctly
- ``model_export.py``: a trained model as a plain Hugging Face directory
- ``tiny_models.py``: tiny untrained models for the demo and tests
- ``attention/``: the attention of packed sequences, with kernels for CPUs and GPUs
- ``batching/``: which rank computes which completions when
"""

import os

import torch

if not torch.cuda.is_available():
    # Without it, DeepSpeed looks for an accelerator by itself and prints a warning in every process.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
