#!/usr/bin/env python
"""Convert a configuration of pico-train or pico-maml, and print the result to standard output.

    python scripts/migrate_config.py old.yaml > new.yaml

A comment next to each key names the source of its value. The top of the new file and stderr list the omitted keys with
the reasons. `--table` prints the table of all keys, which is also in docs/migrating.md.
"""

import argparse
import sys
from pathlib import Path

from pico_ds.command_line import exit_code_of
from pico_ds.compat.config_migration import migrate
from pico_ds.config.legacy_keys import table_of_keys
from pico_ds.config.loading import read_text


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("old", type=Path, nargs="?", help="YAML configuration of a pico-train or pico-maml run")
    group.add_argument("--table", action="store_true", help="print the replacement of each key, as a Markdown table")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.table:
        print(table_of_keys(), end="")
        return 0
    migration = migrate(read_text(arguments.old), name=str(arguments.old))
    print(migration.text, end="")
    for note in migration.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
