"""Inference: anomaly scores of single points, batches and many series, from models kept in memory."""
