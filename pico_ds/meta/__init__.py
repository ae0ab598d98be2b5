"""First-order MAML as pure functions of the parameters, on one rank and without communication."""
