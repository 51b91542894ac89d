"""Pages to show: one self-contained HTML file of a run; the frame and the looks of a sweep's page are the same ones."""
