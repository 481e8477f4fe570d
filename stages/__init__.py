"""The pipeline's stages, one script each: read params, run a job, write results."""
