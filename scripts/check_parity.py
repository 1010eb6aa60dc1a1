"""Compare our networks with goldens of the official one, a line a case and field; exit 1 over the tolerance.

uv run python scripts/check_parity.py tests/data/goldens
"""

import json
import sys
from pathlib import Path

import tyro

from da3_splat.check.parity import TOLERANCE, read_cases, run_cases


def main(
    goldens: tyro.conf.Positional[Path], only: str = "", tolerance: float = TOLERANCE, json_file: Path | None = None
) -> None:
    """Run every case whose name contains `only`.

    Args:
        goldens: folder with index.json and npz files, or the folder around such folders
        only: part of a case's name
        tolerance: largest relative L2
        json_file: write the same numbers there
    """
    worst, numbers = 0.0, {}
    print(f"{'case':40} {'field':18} relative L2")
    for case, errors in run_cases([case for case in read_cases(goldens) if only in case.name]):
        for field, error in errors.items():
            print(f"{case.name:40} {field:18} {error:.2e}{'   over' if not error <= tolerance else ''}", flush=True)
            worst = max(worst, error if error == error else float("inf"))
        numbers[case.name] = errors
    if json_file:
        json_file.write_text(json.dumps({"relative_l2": numbers, "worst_relative_l2": worst}, indent=1))
    print(f"{len(numbers)} cases, worst relative L2 {worst:.2e}, tolerance {tolerance:.0e}")
    sys.exit(0 if numbers and worst <= tolerance else 1)


try:
    tyro.cli(main)
except ValueError as error:
    print(f"check_parity: {error}", file=sys.stderr)
    sys.exit(2)
