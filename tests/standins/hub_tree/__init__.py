"""Small repositories with the names and the shape of real ones on the Hugging Face Hub, and invented content."""
