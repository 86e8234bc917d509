"""Whether relevance lies on planted evidence: signals, volumes and sequences of which it is known what decides."""
