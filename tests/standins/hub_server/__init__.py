"""A stand-in for the Hugging Face Hub on loopback: it serves the repositories of a folder for reading."""
