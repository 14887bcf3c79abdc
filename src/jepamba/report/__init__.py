"""Reports of one run: report.html with its charts, the terminal view, and the readers of the files a run leaves."""
