"""Sound: bytes to log-mel (preprocess), log-mel to features (encoder), features to tokens."""
