"""Token groups in, a trained reward model out; deepspeed in engine.py only, no ray."""
