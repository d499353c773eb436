"""Token groups in, a trained reward model out; deepspeed in engine.py only, no ray."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed would find out for itself and warn of it in every process.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
