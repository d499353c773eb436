"""Write a page on an annotations table: who judged what, how far they agree, and what looks wrong.

Same arguments as `pairwright report`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/report.py s3://bucket/annotations --output s3://bucket/report.html
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["report"]
    main()
