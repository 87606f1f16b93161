"""The report: one self-contained HTML file about one run or a comparison, and the verdict on each system.

summaries = summarise(["runs/pure/seed0", "runs/pure/seed1"])     # intervals over seeds, hacked or not
build_report(["runs/pure/seed0", "runs/outcome/seed0"], "report.html", "PURE against outcome-only")
"""

from guerdon.report.build import build_report
from guerdon.report.runs import RunDir, SystemSummary, load_runs, summarise
from guerdon.report.verdict import HackingVerdict, Interval, Measurement, combine, hacked

__all__ = [
    "HackingVerdict",
    "Interval",
    "Measurement",
    "RunDir",
    "SystemSummary",
    "build_report",
    "combine",
    "hacked",
    "load_runs",
    "summarise",
]
