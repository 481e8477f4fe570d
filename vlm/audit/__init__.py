"""From the splits and the predictions to a ranked list of suspicious samples. Cheap: nothing here runs a model."""
