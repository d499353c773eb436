"""Turn rankings into weighted pairs and split the groups by prompt.

Same arguments as `pairwright expand`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/expand.py s3://bucket/annotations --into s3://bucket/pairs
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["expand"]
    main()
