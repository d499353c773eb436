"""Tell what one version of a table has against another one.

Same arguments as `pairwright diff`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/diff.py s3://bucket/annotations 1 2
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["diff"]
    main()
