"""Search for settings: ranges, a study on disk that several processes share, and what came of it."""
