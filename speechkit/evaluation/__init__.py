"""How right a transcript is: error rates against references. In: texts. Out: numbers. Knows no torch."""
