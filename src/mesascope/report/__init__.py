"""Reports: figures for files and for the page, the page itself, and claims in the terminal.

matplotlib, plotly and jinja2 are imported by the functions that draw, not by this package.
"""

from mesascope.report.console import print_claims, print_overview
from mesascope.report.documents import write_documents
from mesascope.report.interactive import to_plotly
from mesascope.report.keep import keep_results
from mesascope.report.model import Report, failed_first, format_duration, format_number, verdict
from mesascope.report.overview import Overview, OverviewEntry, natural_order, write_overview
from mesascope.report.page import write_page
from mesascope.report.static import save_figure
from mesascope.report.write import write_report

__all__ = [
    "Overview",
    "OverviewEntry",
    "Report",
    "failed_first",
    "format_duration",
    "format_number",
    "keep_results",
    "natural_order",
    "print_claims",
    "print_overview",
    "save_figure",
    "to_plotly",
    "verdict",
    "write_documents",
    "write_overview",
    "write_page",
    "write_report",
]
