"""The tables and figures of the papers, run again: `tools/reproduce NAME` prints the paper's row beside ours."""
