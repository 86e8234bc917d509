"""Images, figures and pages."""

from headwater.report.flow import flow_figure
from headwater.report.images import Labels, Style, figure, overlay
from headwater.report.page import write_report
from headwater.report.scales import scales_figure
from headwater.report.sheet import contact_sheet
from headwater.report.stages import c3_figure

__all__ = [
    "Labels",
    "Style",
    "c3_figure",
    "contact_sheet",
    "figure",
    "flow_figure",
    "overlay",
    "scales_figure",
    "write_report",
]
