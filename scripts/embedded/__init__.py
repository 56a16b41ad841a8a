"""The parts of ``scripts/train_embedded.py``: packed photos, the teachers' answers, the views, the loop."""
