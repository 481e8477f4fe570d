"""The report, a page for a browser: every sample, confusion and suspicious label. Cheap: it reads what stages wrote."""
