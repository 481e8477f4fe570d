"""From predictions to metrics, tables and pictures. Cheap: nothing here runs a model."""
