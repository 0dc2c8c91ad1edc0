"""Where the sources are wrong, with what is right and the numbers that show it."""

from vdiff.theorems.errata import blog, book, notes, practice, slides
from vdiff.theorems.errata.erratum import ERRATA, Correction, Erratum
from vdiff.theorems.errata.misprints import EXTRACTED, MISPRINTS, Misprint

SOURCES = (blog, slides, notes, book, practice)

__all__ = ["ERRATA", "EXTRACTED", "MISPRINTS", "Correction", "Erratum", "Misprint"]
