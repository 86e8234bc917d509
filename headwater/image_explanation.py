"""Names that are in ``headwater.explanations`` now; this module goes with the next version."""

from headwater.explanations import MADE_FROM, ImageExplanation, explain, explain_files, stem_of

__all__ = ["MADE_FROM", "ImageExplanation", "explain", "explain_files", "stem_of"]
