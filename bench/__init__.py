"""The benchmarks: what a run costs, beside the least that it could cost, measured in the same minute."""
