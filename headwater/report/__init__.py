"""Pictures and figures."""

from headwater.report.pictures import Style, figure, overlay

__all__ = ["Style", "figure", "overlay"]
