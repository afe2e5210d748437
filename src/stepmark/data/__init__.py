"""What is on disk and how it survives a kill: records, rows of other people's files, ledgers, units of work."""
