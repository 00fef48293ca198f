"""One file for each budget. Each prints a Markdown section; `python -m benchmarks` keeps them."""
