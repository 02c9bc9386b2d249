"""The report as one HTML file that works offline."""

from __future__ import annotations

from prunekit.report.schema import Report


def to_html(report: Report) -> str:
    """The whole report as one page, nothing loaded from elsewhere."""
    return f"<title>{report.model}</title>"
