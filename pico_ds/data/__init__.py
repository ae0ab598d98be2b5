"""Training data: documents, tokenizers, corpora and rows."""
