"""Runs a verb of `pairwright`, with the same arguments, as the entry point of a Ray job.

::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/run.py train --config train.toml
"""

from pairwright.cli.main import main

if __name__ == "__main__":
    main()
