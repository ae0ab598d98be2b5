"""What a model can do: validation loss and few-shot accuracy."""
