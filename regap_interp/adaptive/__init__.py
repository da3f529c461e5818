"""ReGap: items, outcomes, calibration, and adaptive drift correction of each row."""
