"""Records: the ports, the data path of a lane, owners and scorers. Knows nothing of clusters."""
