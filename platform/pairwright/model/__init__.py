"""Tokens in, rewards and the loss out; no deepspeed, no ray."""
