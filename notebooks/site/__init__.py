"""Build the static site from the lessons as they were run and saved: python -m notebooks.site."""
