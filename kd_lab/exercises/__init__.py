"""Check what a learner answers, keep it, and find the mistakes that people make."""

from kd_lab.exercises.feedback import check, grade, hint, solution
from kd_lab.exercises.ledger import calibration, ledger, save_page
from kd_lab.exercises.questions import Question, measured
