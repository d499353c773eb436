"""Compute the reward of each completion.

Same arguments as `pairwright score`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/score.py s3://bucket/run/model s3://bucket/prompts.jsonl --output s3://bucket/rewards
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["score"]
    main()
