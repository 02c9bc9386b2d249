"""The report: what was asked, what was measured, and where everything lies."""

from prunekit.report.history import read_log
from prunekit.report.html import to_html
from prunekit.report.markdown import to_markdown
from prunekit.report.schema import REPORT_VERSION, Report

__all__ = ["REPORT_VERSION", "Report", "read_log", "to_html", "to_markdown"]
