"""Documents, tokenizer, corpus and rows."""
