"""The Epps-Pulley statistic against N(0, 1)."""
