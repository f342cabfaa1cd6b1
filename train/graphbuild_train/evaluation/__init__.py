"""Evaluation of a LoRA: fixed walks, filled by it and by baselines, judged, and put into tables and a page."""
