"""Grade a folder of submitted notebooks through nbgrader: python -m notebooks.grading SUBMISSIONS RESULTS."""
