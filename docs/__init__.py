"""Build the site and README.md from the notebooks: `python -m docs`."""
