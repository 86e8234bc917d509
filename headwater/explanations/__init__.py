"""One image, or one text, explained in one call.

In go what people hold (files, images in memory, texts) and a model by any name; out comes an explanation that draws and
saves itself. It may not know the command line, the page, runs over folders, or tables of measures.
"""

from headwater.explanations.calls import explain, explain_files
from headwater.explanations.image import ImageExplanation
from headwater.explanations.single import MADE_FROM, stem_of
from headwater.explanations.text import TextExplanation, explain_text

__all__ = [
    "MADE_FROM",
    "ImageExplanation",
    "TextExplanation",
    "explain",
    "explain_files",
    "explain_text",
    "stem_of",
]
