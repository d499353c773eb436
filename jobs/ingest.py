"""Read annotations, refuse what is not one, and append the rest to a table.

Same arguments as `pairwright ingest`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/ingest.py s3://bucket/rankings/ --into s3://bucket/annotations
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["ingest"]
    main()
