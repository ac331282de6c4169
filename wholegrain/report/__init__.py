"""The report of a stage: one HTML file with curves, results, photos and the way to repeat it.

>>> from wholegrain.report import Case, Report, ResultTable, write_report
"""

from wholegrain.report.content import Case, Cell, Estimate, Report, ResultTable
from wholegrain.report.page import render_report, write_report

__all__ = [
    "Case",
    "Cell",
    "Estimate",
    "Report",
    "ResultTable",
    "render_report",
    "write_report",
]
