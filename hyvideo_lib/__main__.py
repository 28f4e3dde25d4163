"""`python -m hyvideo_lib VERB`: the command line."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
