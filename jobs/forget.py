"""Commit a version without an annotator or a prompt, and prove that no file of it holds them.

Same arguments as `pairwright forget`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/forget.py s3://bucket/annotations --annotator NAME
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["forget"]
    main()
