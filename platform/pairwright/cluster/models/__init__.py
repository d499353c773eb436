"""Models that compute rewards: in this process, or on a pool of Ray actors.

In reading order:

- ``model_runner.py``: computes on models in this process, or on a pool of actors
- ``actor_pool.py``: a pool of actors that hold a model
- ``evaluate_job.py``: evaluates a model on a split
- ``compare_job.py``: evaluates several models on the same pairs, and compares them
- ``score_input.py``: the chunks of a scoring input
- ``score_job.py``: scores an input with a model
- ``serve_replicas.py``: the reward server in several replicas, on Ray Serve
- ``serve_application.py``: the same for a configuration file of Ray Serve
"""
