"""The configuration of a training run: model, data, tokens, batches, loss, optimizer, DeepSpeed, workers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairwright.config.section import Fraction, PositiveInt, Section


class ModelConfig(Section):
    """The starting model."""

    path: str
    """Directory (or hub name) of a Hugging Face causal or sequence-classification model with its tokenizer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: bool = False
    """Keep the model's own dropout; off by default, since reward models lose more by it than they gain."""
    cpu_kernels: bool = True
    """Use our attention kernels for CPUs and the narrowed last layer; false: PyTorch's alone. Equal up to rounding."""


class DataConfig(Section):
    """The training data."""

    pairs: str
    """URL of a pairs table."""
    version: PositiveInt | None = None
    """Version of it; the newest when the run starts if not given (and then recorded)."""


class TokensConfig(Section):
    """Tokenisation of groups."""

    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest prompt and completion together, in tokens."""
    overlong_policy: Literal["drop", "truncate"] = "drop"
    """drop: remove a longer completion and its pairs; truncate: cut its end. Both are counted and shown."""
    special_in_text: Literal["split", "refuse", "keep"] = "split"
    """Special tokens spelled out in a text. split: read as plain text; refuse: remove the text; keep: as tokens."""
    refused: Literal["drop", "stop"] = "drop"
    """A group that the chat template refuses. drop: remove and count it; stop: end the run and name it."""
    chat_template: str | None = None
    """Jinja chat template (text, or path of a .jinja file); the tokenizer's own if not given, else a plain one."""
    template_end: Literal["end_of_turn", "template"] = "end_of_turn"
    """end_of_turn: leave off white space that the template writes behind the last end of turn; template: keep it."""
    cache: str | None = None
    """URL of the token cache; by default ``tokens/`` beside the run's output."""


class BatchesConfig(Section):
    """Sizes of a step and of a forward pass."""

    groups_per_step: PositiveInt = 64
    """Groups (prompts) in a global batch; InstructGPT: 64."""
    micro_batch_tokens: PositiveInt = 16384
    """Token budget of one forward pass on one rank, padding included. Changes speed and memory, never the result."""
    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    """Layout of texts in a forward pass; auto: the fastest that this model computes correctly, tested at the start."""


class LossConfig(Section):
    """The loss: Bradley-Terry or hinge over pairs, or Plackett-Luce over whole rankings."""

    kind: Literal["bradley_terry", "hinge", "plackett_luce"] = "bradley_terry"
    """Over pairs: -log sigmoid(difference), or max(0, margin - difference); over rankings: -log probability."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a label is wrong (conservative Bradley-Terry); for bradley_terry only."""
    use_margin: bool = True
    """Use the pairs' margins as wanted reward differences; plackett_luce has no margins."""
    hinge_margin: Annotated[float, Field(gt=0)] = 1.0
    """Reward difference from which on a pair without a margin costs nothing; for hinge only."""
    center_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared sum of a pair's rewards, which keeps rewards around 0; TRL suggests 0.01."""

    @model_validator(mode="after")
    def _settings_are_of_this_kind(self) -> Self:
        if self.label_smoothing and self.kind != "bradley_terry":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, and {self.kind} has no smoothed form; remove it, or set "
                'loss.kind = "bradley_terry"'
            )
        if self.use_margin and self.kind == "plackett_luce":
            raise ValueError(
                "use_margin is true, and plackett_luce is over rankings, which have no margins; set "
                "loss.use_margin = false"
            )
        if self.kind != "hinge" and self.hinge_margin != type(self).model_fields["hinge_margin"].default:
            raise ValueError(
                f'hinge_margin is {self.hinge_margin}, and {self.kind} has none; remove it, or set loss.kind = "hinge"'
            )
        return self


class OptimizerConfig(Section):
    """AdamW and the schedule of its learning rate."""

    learning_rate: Annotated[float, Field(gt=0)] = 9e-6
    """Peak learning rate; InstructGPT's 6B reward model: 9e-6."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which the rate rises linearly; Llama 2: 3 %."""
    min_lr_ratio: Fraction = 0.1
    """Rate at the last step as a share of the peak, reached by a cosine; InstructGPT: 10 %."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip the global gradient norm to this; a huge value never clips."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) instead of full fine-tuning."""

    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout rate of an adapter's inputs in training; independent of ``model.dropout``."""
    target_modules: (
        Literal["all-linear"] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    ) = "all-linear"
    """Layers with an adapter: all-linear, every linear layer below the head; or a list of names or ends of names."""
    keep_adapter: bool = False
    """Keep the adapter, in peft's format, in the model's folder ``adapter``, beside the merged weights."""


class DeepSpeedConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's weights and activations; rewards, loss and optimizer are float32 always."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the CPU's memory, and step there; ZeRO 1 to 3."""
    offload_parameters: bool = False
    """Keep each layer's weights in the CPU's memory until the layer computes; ZeRO 3, with offload_optimizer."""

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        for key, least in (("offload_optimizer", 1), ("offload_parameters", 3)):
            if self.__dict__[key] and self.zero_stage < least:
                raise ValueError(
                    f"{key} needs deepspeed.zero_stage {least} or more, found {self.zero_stage}: raise it, or set "
                    f"deepspeed.{key} = false"
                )
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError(
                "offload_parameters needs deepspeed.offload_optimizer too, since the optimizer's state is several "
                "times as large as the weights: set it to true"
            )
        return self


class TrainingConfig(Section):
    """Length of the run, evaluations and checkpoints."""

    epochs: PositiveInt = 1
    """Passes over the groups; reward models overfit from the second on (Ouyang et al. 2022)."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps; the schedule ends there too."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the data order, the head's initial weights and dropout."""
    log_every_steps: PositiveInt = 10
    """Steps between two log lines; there is one a minute in any case."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between two evaluations on the validation split; only at the end if not given."""
    checkpoint_every_steps: PositiveInt = 100
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Number of the latest checkpoints that are kept."""
    best_metric: Literal["accuracy", "log_loss"] | None = None
    """Keep one more checkpoint: the best by this metric on the validation split; needs evaluate_every_steps."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """If a step's loss or gradient is not finite: stop the run, or skip the step."""
    max_skipped_steps: PositiveInt = 10
    """Maximum number of non-finite steps to skip in the whole run, restarts included."""
    storage_retry_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """How long to retry writing a checkpoint to a disk or a storage that fails, before the run stops."""

    @model_validator(mode="after")
    def _best_is_evaluated(self) -> Self:
        every = self.evaluate_every_steps
        if self.best_metric and (every is None or every % self.checkpoint_every_steps):
            raise ValueError(
                f"best_metric needs evaluate_every_steps to be a multiple of checkpoint_every_steps "
                f"({self.checkpoint_every_steps}), so that every evaluation has a checkpoint; found {every}"
            )
        return self


class WorkersConfig(Section):
    """The training processes."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Number of ranks, one GPU each if GPUs are used; [least, most]: as many as the cluster has room for."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for each worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often failed workers are replaced before the run gives up."""
    hang_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Replace all workers after this time without progress (or five times the longest pause so far)."""
    start_timeout_seconds: PositiveInt = 60
    """How long a start waits for all workers before it counts the cluster again; at least a node's boot time."""
    resize_interval_seconds: PositiveInt = 60
    """With [least, most]: time between two checks for room for more workers."""

    @model_validator(mode="after")
    def _least_is_at_most_most(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"num_workers is [{self.least}, {self.most}], expected [least, most]: swap the two")
        return self

    @property
    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of each rank, by the names that Ray has for them."""
        cpus: dict[str, float] = {"CPU": self.cpus_per_worker}
        return cpus | ({"GPU": 1} if self.use_gpu else {})

    @property
    def least(self) -> int:
        """Minimum number of ranks."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """Maximum number of ranks."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class TrainConfig(Section):
    """A whole training run; the files under config/recipes/ are examples."""

    output: str
    """URL of the run's directory: checkpoints, TensorBoard events, summary.json and the model."""
    tracking: tuple[Literal["tensorboard", "mlflow", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where metrics are shown: any of tensorboard, mlflow, wandb and trackio; [] for none but metrics-*.jsonl."""
    model: ModelConfig
    data: DataConfig
    tokens: TokensConfig = TokensConfig()
    batches: BatchesConfig = BatchesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """If given, even empty: train adapters and the head; else all weights."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _budget_holds_a_completion(self) -> Self:
        if self.batches.micro_batch_tokens < self.tokens.max_length:
            raise ValueError(
                f"batches.micro_batch_tokens ({self.batches.micro_batch_tokens}) is smaller than tokens.max_length "
                f"({self.tokens.max_length}), so the longest completion fits no micro-batch; raise the first or lower "
                "the second"
            )
        return self
