"""One rank of `run_ranks`: python -m tests.launching.rank DIRECTORY MODULE FUNCTION ARGUMENTS."""

import importlib
import json
import sys
from pathlib import Path

from pico_ds.engine.distributed import start_process, stop_process


def main() -> None:
    directory, module, function, arguments = sys.argv[1:]
    process = start_process()
    result = getattr(importlib.import_module(module), function)(process, *json.loads(arguments))
    (Path(directory) / f"{process.rank}.json").write_text(json.dumps(result))
    stop_process()


if __name__ == "__main__":
    main()
