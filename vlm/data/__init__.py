"""The files between the stages: the data sets, the predictions and flat JSON, written and read."""
