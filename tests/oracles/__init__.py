"""Independent references in float64 NumPy, from the papers; they share no code with normbench."""
