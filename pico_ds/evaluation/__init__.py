"""Evaluation of models: validation loss, perplexity, few-shot accuracy and token classification."""
