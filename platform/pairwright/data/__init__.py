"""Annotations in, weighted pairs and tokens out; no torch, no ray."""
