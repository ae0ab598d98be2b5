"""Text corpora and tokenizers."""
