"""Ray: the only code that imports it.

In reading order:

- ``node_pools.py``: which nodes data work and training ask for
- ``session.py``: connects to a cluster, or starts a local one
- ``local_ray.py``: a local Ray that only this user can reach
- ``sized_executor.py``: decides whether this process or Ray Data does the work
- ``ray_map.py``: maps a function over items with Ray Data
- ``external_sources.py``: databases, lakehouse tables and topics as Ray Data datasets
- ``stage_external.py``: writes rows of external sources into a table's staging folder
- ``pipeline_stages.py``: the stages of a pipeline: is the work done already, by digest, and who does it
- ``pipeline_run.py``: runs a pipeline, and its lineage
- ``job_request.py``: what a verb submits to a cluster, checked before anything is uploaded
- ``job_client.py``: submits a job, follows its log, and ends as it ends
- ``models/``: evaluation, comparison, scoring and serving on one process or several
- ``train/``: training under Ray Train
"""
