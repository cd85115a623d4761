"""Pictures and tables of what was learnt."""
