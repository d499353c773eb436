"""Tell what an ingestion would refuse, without changing any table.

Same arguments as `pairwright validate`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/validate.py s3://bucket/rankings/ --scratch s3://bucket/scratch
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["validate"]
    main()
