"""Make few larger files of many small ones: a new version with the same rows in the same order.

Same arguments as `pairwright compact`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/compact.py s3://bucket/annotations
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["compact"]
    main()
