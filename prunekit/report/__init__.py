"""The report: what was asked, what was measured, and where everything lies."""

from prunekit.report.html import to_html
from prunekit.report.markdown import to_markdown
from prunekit.report.schema import REPORT_VERSION, Report

__all__ = ["REPORT_VERSION", "Report", "to_html", "to_markdown"]
