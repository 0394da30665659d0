"""Models, files and formats that other projects define."""
