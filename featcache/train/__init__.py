"""Train heads from caches: selection, penalty paths, distillation, calibration. Imports no torch, no scikit-learn."""
