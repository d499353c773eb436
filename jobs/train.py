"""Train a reward model, or go on with the run that the output already holds.

Same arguments as `pairwright train`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/train.py jobs/recipes/llama8b_zero3.toml
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
