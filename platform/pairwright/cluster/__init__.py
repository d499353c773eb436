"""Ray: the only code that imports it.

In reading order:

- ``session.py``: connects to a cluster, or starts a local one
- ``local_ray.py``: a local Ray that only this user can reach
- ``sized_executor.py``: decides whether this process or Ray Data does the work
- ``ray_map.py``: maps a function over items with Ray Data
- ``external_sources.py``: databases, lakehouse tables and topics as Ray Data datasets
- ``stage_external.py``: writes rows of external sources into a table's staging folder
- ``model_runner.py``: computes on models in this process, or on a pool of actors
- ``actor_pool.py``: a pool of actors that hold a model
- ``evaluate_job.py``: evaluates a model on a split
- ``compare_job.py``: evaluates several models on the same pairs, and compares them
- ``score_input.py``: the chunks of a scoring input
- ``score_job.py``: scores an input with a model
- ``serve_replicas.py``: the reward server in several replicas, on Ray Serve
- ``train/``: training under Ray Train
"""
