"""The mutations of `tests/mutation_campaign.py` still apply to the code."""

import pytest

from tests.launching import REPOSITORY
from tests.mutation_campaign import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_applies_to_one_place(mutation: Mutation) -> None:
    assert (REPOSITORY / mutation.file).read_text().count(mutation.old) == 1
    assert all((REPOSITORY / path).exists() for path in mutation.nearest.split())
