"""The edge: models, files and formats of others."""
