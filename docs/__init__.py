"""The site and README.md out of the notebooks: `python -m docs`."""
