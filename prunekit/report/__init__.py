"""The report: what was asked, what was measured, and where everything lies."""

from prunekit.report.history import read_log
from prunekit.report.html import to_html
from prunekit.report.markdown import to_markdown
from prunekit.report.schema import REPORT_VERSION, Report
from prunekit.report.sparsity import SparsityReport, sparsity_html, sparsity_markdown

__all__ = [
    "REPORT_VERSION",
    "Report",
    "SparsityReport",
    "read_log",
    "sparsity_html",
    "sparsity_markdown",
    "to_html",
    "to_markdown",
]
