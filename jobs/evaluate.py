"""Measure a reward model on held-out pairs.

Same arguments as `pairwright evaluate`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/evaluate.py s3://bucket/run/model --pairs s3://bucket/pairs
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["evaluate"]
    main()
