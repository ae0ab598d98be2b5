#!/usr/bin/env python
"""Train a Pico language model with first-order MAML.

    python scripts/train.py                                        train the demo in one process
    deepspeed --num_gpus 8 scripts/train.py --config FILE --deepspeed_config FILE
    torchrun --nproc_per_node 8 scripts/train.py --config FILE

Override any key of the configuration with section.key=value. --help-keys lists the keys.
"""

import time

STARTED = time.time()

import argparse  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from pico_ds.command_line import exit_code_of, report_once_per_node  # noqa: E402

MAX_RANKS = 10**6
REPOSITORY = Path(__file__).resolve().parents[1]
# torch reads this when it is imported; without large pages, a load on CPU spends a quarter of its time mapping memory
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=REPOSITORY / "configs" / "demo.yaml", help="YAML configuration of the run"
    )
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        type=Path,
        default=REPOSITORY / "ds_configs" / "zero1.json",
        help="JSON file with DeepSpeed settings",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings and the estimated costs, then exit"
    )
    parser.add_argument("--world-size", type=int, help="number of ranks to assume in a dry run")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # for the deepspeed launcher
    parser.add_argument(
        "--help-keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="print the keys of the configuration, or of one section such as meta, with meaning and default, then exit",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a key of the configuration")
    arguments = parser.parse_intermixed_args()
    if arguments.world_size is not None and not arguments.dry_run:
        parser.error("--world-size requires --dry-run; in a real run, the launcher sets the number of ranks")
    if arguments.world_size is not None and not 1 <= arguments.world_size <= MAX_RANKS:
        parser.error(f"argument --world-size: got {arguments.world_size}; give an integer from 1 to {MAX_RANKS:,}")
    return arguments


def config_name_of(config: Path) -> str:
    """Return the file name after which a run is named.

    For the configuration inside a run directory this is the name of that run without its number.
    """
    if config.name != "training_config.yaml":
        return config.name
    return re.sub(r"-\d+$", "", config.resolve().parent.name) + ".yaml"


def main() -> int:
    arguments = parse_arguments()
    if arguments.help_keys is not None:
        from pico_ds.config.reference_page import key_help

        print(key_help(arguments.help_keys))
        return 0
    from pico_ds.config import load_config
    from pico_ds.config.deepspeed_config import load_deepspeed_config
    from pico_ds.config.dotenv import load_environment

    with report_once_per_node():
        load_environment(Path.cwd() / ".env")
        config = load_config(arguments.config, arguments.overrides)
        deepspeed_json = load_deepspeed_config(arguments.deepspeed_config)
    if arguments.dry_run:
        from pico_ds.planning.dry_run import print_plan

        print_plan(config, deepspeed_json, arguments.deepspeed_config.name, arguments.world_size)
        return 0
    from pico_ds.faults.stop_signals import StopSignals

    # install the handlers before the slow imports, because a launcher may die while its ranks start
    signals = StopSignals()
    from pico_ds.engine.distributed import collective_timeout, start_process, stop_process
    from pico_ds.preflight.rank_agreement import check_agreement
    from pico_ds.training.run_training import RunRequest, run_training

    process = start_process(collective_timeout(config.training.hang_timeout_seconds))
    check_agreement(config, deepspeed_json, process)
    request = RunRequest(
        config, config_name_of(arguments.config), deepspeed_json, arguments.deepspeed_config.name, STARTED
    )
    outcome = run_training(request, process, signals)
    stop_process()
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
