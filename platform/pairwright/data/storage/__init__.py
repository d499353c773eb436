"""Storage: object stores and local disks.

In reading order:

- ``object_store.py``: opens the store at a URL
- ``ownership.py``: what may be created, replaced and deleted at a URL
- ``outputs.py``: writes files and directories where a user asks for them
- ``durable_writes.py``: flushes local files before a commit
- ``lease.py``: one command at a time on a folder
- ``backoff.py``: retries for storage errors
- ``local_cache.py``: this user's cache, and markers of verified files
- ``cache_limit.py``: bounds the tokens and models in that cache
- ``model_files.py``: checks the files of a model directory
- ``model_listing.py``: lists the files of an exported model
"""
