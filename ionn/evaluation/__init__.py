"""What traces say: summaries, verdicts on claims, figures, a report."""
