from tests.unit.tasks.conftest import tokenizer

__all__ = ["tokenizer"]
