"""First-order MAML as pure functions; nothing here knows of ranks."""
