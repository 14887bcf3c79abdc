"""A finished run as a submission to the 16 MB challenge.

Read `folder.py` first, then `scoring.py`, the program of the scoring script, and `bundle.py`, which makes one file of
it.
"""

from jepamba.submission.folder import About, check, write_submission

__all__ = ["About", "check", "write_submission"]
