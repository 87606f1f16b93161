"""Rewards and choices from several rollouts of one prompt: votes, and what they agree on."""
