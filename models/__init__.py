"""Numbers: history, scorers, calibration, decisions. Knows nothing of Ray, Kafka or the clock."""
