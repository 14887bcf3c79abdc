"""Studies: plans of runs × seeds, how they are run, what their differences are worth, and the report of each run."""
