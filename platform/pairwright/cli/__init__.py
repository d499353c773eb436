"""The command line.

In reading order:

- ``main.py``: the console script: verbs that make and show data; how errors end a command
- ``table_verbs.py``: verbs that maintain tables, and check and list sources
- ``run_verbs.py``: verbs that train, evaluate and use reward models
- ``serving_verbs.py``: verbs that serve reward models
- ``render.py``: what verbs did, as text for a person
- ``schema_files.py``: writes the data contracts under ``schemas/``
"""
