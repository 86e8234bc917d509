"""Pictures and figures."""

from headwater.report.flow import flow_figure
from headwater.report.pictures import Style, figure, overlay

__all__ = ["Style", "figure", "flow_figure", "overlay"]
