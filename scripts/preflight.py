#!/usr/bin/env python
"""Check nodes, network, disk and data before a run. Prints a table, and a message for each problem.

    python scripts/preflight.py --config FILE                                      this machine only
    torchrun --nnodes 4 --nproc_per_node 8 ... scripts/preflight.py --config FILE  all nodes of the run
    deepspeed --hostfile FILE scripts/preflight.py --config FILE

Pass the configuration and the overrides of the run. The exit code is 1 if a check failed.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from pico_ds.command_line import exit_code_of
from pico_ds.console import make_console

REPOSITORY = Path(__file__).resolve().parents[1]
_MIB = 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "demo.yaml", help="YAML of the run")
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        type=Path,
        default=REPOSITORY / "ds_configs" / "zero1.json",
        help="JSON file with DeepSpeed settings",
    )
    parser.add_argument(
        "--largest_mib", type=int, help="size of the largest message [MiB]; default: 256 on a GPU, 16 on CPU"
    )
    parser.add_argument("--least_gb_per_second", type=float, help="the network check fails below this bus bandwidth")
    parser.add_argument(
        "--timeout_seconds", type=float, default=120.0, help="time limit for the start of all ranks and for each reply"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # for the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a key of the YAML")
    return parser.parse_intermixed_args()


def main() -> int:
    arguments = parse_arguments()
    from pico_ds.config import load_config
    from pico_ds.config.deepspeed_config import load_deepspeed_config
    from pico_ds.engine.distributed import is_lost_peer, start_process, stop_process
    from pico_ds.preflight.check_results import findings_table
    from pico_ds.preflight.run_checks import Limits, run_checks

    try:
        config = load_config(arguments.config, arguments.overrides)
        deepspeed_json = load_deepspeed_config(arguments.deepspeed_config)
        process = start_process(timedelta(seconds=arguments.timeout_seconds))
        largest_mib = arguments.largest_mib or (256 if process.device.type == "cuda" else 16)
        limits = Limits(largest_mib * _MIB, arguments.least_gb_per_second)
        findings = list(run_checks(config, deepspeed_json, limits, process))
        stop_process()
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        print(
            f"error: a rank did not answer within {arguments.timeout_seconds:g} s, or has died; see its output, or "
            f"docs/clusters.md: {str(error).splitlines()[0]}",
            file=sys.stderr,
        )
        return 1
    if process.is_main:
        console = make_console()
        make_console(width=max(120, console.width)).print(findings_table(findings))
        for problem in (problem for finding in findings for problem in finding.problems):
            console.print(f"- {problem}", soft_wrap=True)
    return int(any(finding.problems for finding in findings))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
