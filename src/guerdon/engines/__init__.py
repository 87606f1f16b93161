"""What turns rollouts and a System into a better policy. Each engine is imported by its own name and needs its own extra."""
