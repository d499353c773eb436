"""Runs a verb of `pairwright`, with the same arguments, as the entry point of a Ray job.

::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/run.py train --config jobs/recipes/llama8b_zero3.toml
"""

from pairwright.cli.main import main

if __name__ == "__main__":
    main()
