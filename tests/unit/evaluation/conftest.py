from tests.unit.tasks.conftest import make_tasks, tokenizer

__all__ = ["make_tasks", "tokenizer"]
