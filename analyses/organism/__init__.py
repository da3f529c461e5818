"""The organism measured: cells, directions, correction, and the bars of its model card."""
