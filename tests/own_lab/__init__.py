"""On labs of their own: they are broken, watched or made for one question."""
