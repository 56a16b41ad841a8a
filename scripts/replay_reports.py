"""Replay what people report of programs that do this job: build each small input, run the command, say what came.

    python scripts/replay_reports.py [NAME...] [--json OUT] [--work DIR]

Prints for each report of scripts/reports/ the complaint, the right outcome, what was said, and right or wrong. The
same list is a test (tests/cli/test_reports.py). A new report is one more `Report` there. Exit status 1: one was wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from reports import REPORTS
from reports.report import replay


def main() -> None:
    """Replay the reports named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - {report.name for report in REPORTS})
    if unknown:
        parser.error(f"no report is named {unknown[0]!r}")
    work = arguments.work or Path(tempfile.mkdtemp())
    rows = []
    for report in REPORTS:
        if arguments.names and report.name not in arguments.names:
            continue
        folder = work / report.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        row = {"name": report.name, "complaint": report.complaint, "right": report.right}
        try:
            outcome = replay(report, folder)
            row |= {
                "outcome": "right",
                "status": outcome.status,
                "said": outcome.lines[-1:],
                "seconds": outcome.seconds,
            }
        except Exception as error:  # noqa: BLE001 - what a check trips over is as wrong as what it finds
            said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            row |= {"outcome": "wrong", "why": said}
        rows.append(row)
        said = row["why"] if row["outcome"] == "wrong" else " ".join(row["said"])
        print(
            f"{row['outcome']:5}  {report.name}: {report.complaint}\n       right: {report.right}\n       {said}",
            flush=True,
        )
    if arguments.work is None:
        shutil.rmtree(work, ignore_errors=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(row["outcome"] == "wrong" for row in rows))


if __name__ == "__main__":
    main()
