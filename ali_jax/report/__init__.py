"""The pages that show runs: one file each, which opens offline in any browser.

`write.write_report` shows a run and its model, `compare.write_comparison` several runs by their files alone.
"""
