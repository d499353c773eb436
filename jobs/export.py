"""Write the model of a run's checkpoint as a plain Hugging Face directory.

Same arguments as `pairwright export`; this file is what `ray job submit` runs::

    ray job submit --working-dir . --runtime-env-json '{"py_modules": ["platform/pairwright"]}' -- \
        python jobs/export.py s3://bucket/run --checkpoint 300 --into s3://bucket/model-300
"""

import sys

from pairwright.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["export"]
    main()
