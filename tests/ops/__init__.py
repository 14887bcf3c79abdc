"""Tests of the operators. A package, so that its files can have one name in several folders."""
