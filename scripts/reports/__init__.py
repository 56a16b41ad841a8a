"""Reports of people who do this job, as small inputs: what is given, which command runs, what outcome is right."""

from __future__ import annotations

from reports import machine, maps, models, scan, serving, waits
from reports.report import Report

REPORTS: tuple[Report, ...] = (
    *scan.REPORTS, *machine.REPORTS, *models.REPORTS, *waits.REPORTS, *serving.REPORTS, *maps.REPORTS,
)  # fmt: skip
