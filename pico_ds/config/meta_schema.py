"""The configuration section of the inner loop and its learner."""

from typing import Annotated, Literal

from pydantic import Field

from pico_ds.config.field_types import (
    LayerCount,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Width,
)

#: values of `meta.learner`: names of the modules in `pico_ds/meta/learners/`
LearnerName = Literal["fomaml", "anil", "boil", "reptile", "meta_sgd", "protonet", "multitask", "masked_word", "ar"]


class MetaConfig(Section):
    """How the model learns from tasks (docs/learners.md)."""

    learner: LearnerName = "fomaml"
    """learning algorithm. fomaml: first-order MAML. anil, boil: FOMAML that adapts only the head, or only the body.
    reptile: moves the weights towards the adapted weights. meta_sgd: FOMAML with learned inner learning rates.
    protonet, multitask: the query loss without an inner loop. masked_word: predicts the masked words of the tasks over
    the whole vocabulary. ar: no meta steps"""
    head: Literal["prototype", "linear", "generated", "vocab"] = "prototype"
    """prototype: initialised from the support features of each task (ProtoMAML). linear: meta-learned weights.
    generated: computed from the support features by a network (LEOPARD). vocab: an MLP to the vocabulary, restricted to
    the words of the task (pico-maml)"""
    adapt: str = "all"
    """decoder weights that the inner loop changes in addition to the head: all, head (none of them), last_<k>_blocks,
    or a regular expression that matches their names. The outer loop trains all weights; with meta.learner: reptile a
    meta step trains only the adapted weights and the weights on which the initial head depends"""
    inner_lr: NonNegativeFloat = 0.02
    """SGD learning rate of the decoder's weights in the inner loop"""
    head_inner_lr: NonNegativeFloat = 1.0
    """SGD learning rate of the head's weights in the inner loop"""
    inner_steps: Annotated[int, Field(ge=0, le=10**6)] = 1
    """SGD steps on the support set; 0 trains only the initialisation of the head (a prototypical network if meta.head
    is prototype); ignored in training by learners without an inner loop"""
    inner_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """momentum of the inner SGD"""
    inner_max_grad_norm: NonNegativeFloat = 0.0
    """norm, over all adapted weights, to which the inner gradient of a task is clipped; 0 disables clipping"""
    multi_step_loss: bool = False
    """whether the outer loss includes the query loss after every inner step (MAML++), not only after the last"""
    multi_step_loss_annealing_steps: NonNegativeInt = 0
    """outer steps after the warm-up during which the weights of these losses shift from equal to only the last; 0 keeps
    them equal"""
    learned_rates: Literal["tensor", "layer"] = "tensor"
    """whether meta.learner: meta_sgd learns one inner learning rate for each tensor, or one for each layer. The head
    always has its own rate"""
    vocab_head_layers: LayerCount = 4
    """number of linear layers of the vocab head, including the layer to the vocabulary"""
    vocab_head_width: Width = 128
    """width of the vocab head's hidden layers"""
    vocab_head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """dropout probability of the vocab head's hidden units in training"""
    tasks_per_step: Annotated[int, Field(ge=1, le=10**6)] = 8
    """number of tasks in one meta step, over ALL ranks"""
    tasks_per_batch: PositiveInt | Literal["auto"] = "auto"
    """number of tasks that a rank computes together, each with its own fast weights; memory grows in proportion. auto:
    as many as fit into 8 GiB, but 1 if tasks have fast weights and training runs on a CPU, with training.compile: block
    or with training.activation_checkpointing"""
    feature_squared_norm: PositiveFloat = 4.0
    """squared norm to which features are scaled before the head"""
