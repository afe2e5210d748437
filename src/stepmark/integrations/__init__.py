"""Stepmark inside other people's trainers: TRL, verl, OpenRLHF."""
