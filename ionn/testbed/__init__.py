"""The paper's experiment, on a simulated clock or with real processes, bytes and computations; and what it records."""
