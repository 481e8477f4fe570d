"""Loading a model, its processor and chat template; handling and measuring memory and time."""
