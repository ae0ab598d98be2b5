"""Tests baselines and adaptation curves against their definitions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from pico_ds.config import MetaConfig
from pico_ds.evaluation.baselines import frozen_feature_accuracies, tfidf_accuracies
from pico_ds.evaluation.few_shot import adaptation_curve
from pico_ds.meta.functional_model import FunctionalModel
from pico_ds.meta.learners import EpisodeBatch, make_learner
from pico_ds.meta.meta_model_builder import build_meta_model, build_model_skeleton
from pico_ds.tasks.masked_word_tasks import SMLMT
from tests.fomaml_reference import SHAPE, random_episode
from tests.unit.tasks.test_sentence_tasks import CONFIG


def model(meta: MetaConfig) -> tuple[FunctionalModel, dict[str, torch.Tensor]]:
    module = build_meta_model(SHAPE, meta, 3, 61, seed=0)
    network = FunctionalModel(build_model_skeleton(SHAPE, meta, 3, 61), torch.float32, meta.feature_squared_norm)
    return network, {name: weight.detach() for name, weight in module.named_parameters()}


def test_frozen_feature_accuracies_equal_those_of_scikit_learn() -> None:
    network, theta = model(MetaConfig())
    for seed in range(5):
        episode = random_episode(seed, k_shot=4, q_query=6)
        found = frozen_feature_accuracies(network, theta, episode, "fim")
        z = [
            network.features(theta, part, "fim").detach().double().numpy() for part in (episode.support, episode.query)
        ]
        known, expected = episode.support.labels.numpy(), episode.query.labels.numpy()
        for name, classifier in (
            ("nearest prototype", NearestCentroid()),
            ("logistic regression", LogisticRegression(max_iter=1000)),
        ):
            assert found[name] == pytest.approx(np.mean(classifier.fit(z[0], known).predict(z[1]) == expected))


def test_tfidf_separates_labels_only_if_their_words_differ(tokenizer) -> None:
    words_of_label = {
        "war": "army troops battle",
        "money": "tax debt coin",
        "land": "crop farm soil",
        "law": "court judge crime",
    }
    records = [
        {"text": f"{number} {words} {number}", "label": name}
        for name, words in words_of_label.items()
        for number in range(4)
    ]
    episode = SMLMT.from_sentences(records, tokenizer, CONFIG).sample(0, 0)
    assert tfidf_accuracies(episode, tokenizer) == {"nearest prototype": 1.0, "logistic regression": 1.0}
    same_text = [
        {"text": f"the same words {number}", "label": name} for name in words_of_label for number in range(40, 44)
    ]
    # a text must not have several labels, so make every text unique
    same_text = [{**one, "text": f"{one['text']} {i}"} for i, one in enumerate(same_text)]
    episode = SMLMT.from_sentences(same_text, tokenizer, CONFIG).sample(0, 0)
    assert tfidf_accuracies(episode, tokenizer)["nearest prototype"] < 1.0


@pytest.mark.parametrize("learner", ["fomaml", "anil", "boil", "protonet", "ar"])
def test_adaptation_curve_has_the_accuracy_after_each_number_of_steps(learner: str) -> None:
    meta = MetaConfig(learner=learner, inner_lr=0.3, head_inner_lr=2.0)
    network, theta = model(meta)
    rule, episode = make_learner(meta, network.skeleton.decoder), random_episode(3, q_query=8)
    curve = adaptation_curve(network, rule, theta, episode, "fim", steps=4).tolist()
    for steps, found in enumerate(curve):
        adapted = rule.adapt(EpisodeBatch(network, theta, episode, "fim"), steps)
        logits = rule.head.logits(adapted.head, network.features(adapted.leaves, episode.query, "fim"))
        assert found == pytest.approx(float((logits.argmax(-1) == episode.query.labels).float().mean()))


def test_adaptation_in_evaluation_ignores_the_query_set() -> None:
    """Reptile trains on the support and query sets. In evaluation it adapts only to the support set."""
    meta = MetaConfig(learner="reptile", inner_steps=4, inner_lr=0.3)
    network, theta = model(meta)
    rule = make_learner(meta, network.skeleton.decoder)
    one, other = random_episode(0), random_episode(1)
    mixed = type(one)(one.support, other.query, one.words, one.word_tokens, one.keys)
    weights = [rule.adapt(EpisodeBatch(network, theta, part, "fim"), steps=4).leaves for part in (one, mixed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
