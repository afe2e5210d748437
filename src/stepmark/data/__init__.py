"""Files and how they survive a kill: records, rows of a user's files, ledgers of rollouts, units of work."""
