#!/usr/bin/env python
"""Print docs/configuration.md, which is generated from the schema.

python scripts/config_reference.py > docs/configuration.md
"""

import argparse
import sys

from pico_ds.command_line import exit_code_of
from pico_ds.config.reference_page import reference


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser.parse_args()


def main() -> int:
    parse_arguments()
    print(reference(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
