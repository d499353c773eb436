"""Tokens in, rewards and the loss out; no deepspeed, no ray."""

import os

import torch

if not torch.cuda.is_available():
    # transformers imports DeepSpeed, which would find this out for itself and warn of it in every process.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
