"""The paper's experiment, with a simulated clock or with real processes, bytes and computation, and its traces."""
