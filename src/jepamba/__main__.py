"""`python -m jepamba`: the same as the `jepamba` command."""

import sys

from jepamba.cli import main

sys.exit(main())
