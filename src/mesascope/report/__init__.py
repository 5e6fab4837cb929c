"""Reports: figures for files and for the page, the page itself, and claims in the terminal.

matplotlib, plotly and jinja2 are imported by the functions that draw, not by this package.
"""

from mesascope.report.console import print_claims
from mesascope.report.interactive import to_plotly
from mesascope.report.model import Report, failed_first, format_duration, format_number, verdict
from mesascope.report.page import write_page
from mesascope.report.static import save_figure
from mesascope.report.write import write_report

__all__ = [
    "Report",
    "failed_first",
    "format_duration",
    "format_number",
    "print_claims",
    "save_figure",
    "to_plotly",
    "verdict",
    "write_page",
    "write_report",
]
