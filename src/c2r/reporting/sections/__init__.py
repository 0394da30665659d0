"""The sections of the report, each from the values it shows."""
