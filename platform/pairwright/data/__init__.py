"""Data: annotations in, weighted pairs and tokens out; no torch, no ray.

In reading order:

- ``ingest/``: sources of records are parsed, validated, deduplicated and written as annotations
- ``table/``: the versioned table that holds annotations, pairs and tokens
- ``id_index/``: the index of a table's ids
- ``pairs/``: rankings become weighted pairs
- ``tokens/``: pairs become tokens
- ``profile/``: the page on a table
- ``storage/``: object stores, local disks, ownership, leases, the cache
- ``executor.py``: maps work over items: the protocol, and the implementation in this process
- ``group_by.py``: calls a function on whole groups of a table
- ``shuffle.py``: the shuffle on disk that ``group_by`` uses
- ``identity.py``: content hashes that identify prompts and groups
- ``extras.py``: tools, tool calls and template variables beside the text of turns
- ``preference_strength.py``: named preference strengths, and their margins
- ``synthetic.py``: synthetic rankings with a known true reward
"""
