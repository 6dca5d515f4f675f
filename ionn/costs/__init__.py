"""The costs of layers on a device: cost models and profiles, and how they are measured, fitted and loaded."""
