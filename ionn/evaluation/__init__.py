"""Evaluating traces: summaries, verdicts on claims, figures, and the report."""
