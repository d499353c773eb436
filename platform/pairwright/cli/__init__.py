"""The command line.

In reading order:

- ``main.py``: the console script, and how errors end a command
- ``options.py``: the flags that verbs share
- ``verb_group.py``: the verbs in sections, and what is said of a wrong command line
- ``data_verbs.py``: verbs that read, make and show data
- ``table_verbs.py``: verbs that maintain tables
- ``run_verbs.py``: verbs that train, evaluate and use reward models
- ``config_verbs.py``: verbs for files of settings: start a configuration, run a pipeline
- ``early_checks.py``: what can be wrong with a command, before anything slow is imported
- ``trust_verbs.py``: verbs that put models beside others: benchmarks, comparison, sweeps
- ``serving_verbs.py``: verbs that serve reward models
- ``render.py``: what verbs did, as text for a person
- ``schema_files.py``: writes the data contracts under ``schemas/``
"""
