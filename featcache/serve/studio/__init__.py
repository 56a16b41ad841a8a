"""The studio: bring images, label, see, correct and ship in a browser, on a workspace of ordinary artefacts."""
