"""Check what a learner answers, keep it, and find the mistakes that people make."""
