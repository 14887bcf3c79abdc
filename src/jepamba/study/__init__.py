"""Studies: plans of runs × seeds, their execution, paired statistics, and the report of a study."""
