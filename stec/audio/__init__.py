"""Speech: corpora, windows, the CPC encoder, phones and speakers."""
