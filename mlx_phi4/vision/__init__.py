"""Pictures: bytes to views (preprocess), views to features (encoder), features to tokens."""
