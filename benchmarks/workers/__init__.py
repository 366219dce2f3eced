"""Queue workers under measurement: other people's, ours, and the floors by hand; each a folder with a small program."""
