"""Build the synthetic weights of the models in prototxt/ into models/, as `ionn models --build` does.

python models/build_models.py [MODEL ...]
"""

from __future__ import annotations

import sys

from ionn.__main__ import main

if __name__ == "__main__":
    sys.argv[1:1] = ["models", "--build"]
    main()
