"""Plain float64 references, written from the formulas of the papers and never from our code."""
