"""The report of one run: a record (report.json), and its Markdown and terminal forms."""
