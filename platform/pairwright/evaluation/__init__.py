"""A reward model and held-out groups in, figures out; no ray."""
