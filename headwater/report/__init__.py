"""Pictures and figures."""

from headwater.report.flow import flow_figure
from headwater.report.pictures import Style, figure, overlay
from headwater.report.sheet import contact_sheet

__all__ = ["Style", "contact_sheet", "figure", "flow_figure", "overlay"]
