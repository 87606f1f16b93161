"""Reproductions of the systems' claims: simulators small enough for seconds on one core, credit from the library itself.

Each module has `reproduce(budget) -> Reproduction`. Only policy, environment and scripted scores are simulated; every advantage
comes from the published system's own chain, called on `Rollouts` as an engine would call it.
"""
