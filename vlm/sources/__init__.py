"""Reads pictures from their source and draws the splits. Imported by the stage prepare and by commands only."""
