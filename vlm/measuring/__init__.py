"""Predictions -> metrics, tables and pictures. Cheap: nothing here needs a model."""
