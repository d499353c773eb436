"""The command line.

A path to walk:

- ``main``: the console script: verbs that make and show data; how errors end a command
- ``table_verbs``: verbs that maintain tables, and check and list sources
- ``run_verbs``: verbs that train, evaluate and use reward models
- ``render``: what verbs did, as text for a person
- ``schema_files``: writes the data contracts under ``schemas/``
"""
