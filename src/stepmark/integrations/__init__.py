"""Reward functions for other trainers: TRL, verl, OpenRLHF."""
