"""A finished run as a submission to the 16 MB challenge.

Read `folder.py` first, then `scoring.py`, the program of its script, and `bundle.py`, which makes that one file.
"""

from jepamba.submission.folder import About, check, write_submission

__all__ = ["About", "check", "write_submission"]
