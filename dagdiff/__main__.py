"""``python -m dagdiff``: the command line, where the command ``dagdiff`` is not on the path."""

import os
import sys

if sys.path[0] == os.getcwd():  # Python looks there first with -m; dagdiff looks there last, and for import paths alone
    del sys.path[0]

from dagdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
