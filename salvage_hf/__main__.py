"""`python -m salvage_hf` is `salvage`, and `accelerate launch -m salvage_hf` is it in several processes."""

import sys

from .cli import main

sys.exit(main())
