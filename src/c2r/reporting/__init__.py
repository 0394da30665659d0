"""Measurements in, a page and figures out; nothing is measured here."""

from c2r.reporting.build import build_report
from c2r.reporting.charts import Chart, Report, Series, Verdict
from c2r.reporting.inputs import Inputs, read_inputs
from c2r.reporting.matplotlib_charts import (
    check_matplotlib,
    write_chart,
    write_figures,
    write_sweep_chart,
)
from c2r.reporting.page import render_page, write_page

__all__ = [
    "Chart",
    "Inputs",
    "Report",
    "Series",
    "Verdict",
    "build_report",
    "check_matplotlib",
    "read_inputs",
    "render_page",
    "write_chart",
    "write_figures",
    "write_page",
    "write_sweep_chart",
]
