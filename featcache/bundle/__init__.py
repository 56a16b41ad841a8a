"""The bundle: device files made, run, measured, described, signed and packed."""
