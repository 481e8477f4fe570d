"""Loading a model, its processor and chat template; the memory and time that it needs."""
