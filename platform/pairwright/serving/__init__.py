"""Serves reward models over HTTP: one ASGI application over a scorer. No Ray.

In reading order:

- ``http_server.py``: runs the application in this process: addresses, tokens, connections, draining
- ``application.py``: routes, errors, health, metrics, cards of the models
- ``request_limits.py``: the token, sizes and times of requests
- ``wire_format.py``: what all wire formats have in common
- ``wire_rewards.py``: our own format, OpenRLHF's and LLaMA-Factory's
- ``wire_openai.py``: vLLM's and SGLang's
- ``wire_tei.py``: text-embeddings-inference's
- ``reward_service.py``: one or several models served as one
- ``text_tokens.py``: what a client sends as tokens
- ``batcher.py``: the queue, and which texts are computed together
- ``scorer.py``: the model in memory, its layout and its self-check
- ``serving_metrics.py``: what is counted
"""
