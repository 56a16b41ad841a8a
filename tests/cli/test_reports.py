"""What people report of programs that do this job: each small input of scripts/reports/ ends as it should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from reports import REPORTS
from reports.report import Report, replay


@pytest.mark.parametrize("report", REPORTS, ids=[report.name for report in REPORTS])
def test_a_report_ends_as_it_should(report: Report, tmp_path: Path) -> None:
    replay(report, tmp_path)


def test_names_are_unique() -> None:
    names = [report.name for report in REPORTS]
    assert len(names) == len(set(names))
