"""A training run: model, data, tokens, batches, loss, optimizer, engine, workers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairwright.config.section import Fraction, PositiveInt, Section


class ModelConfig(Section):
    """What training starts from."""

    path: str
    """Directory (or hub name) of a Hugging Face causal or sequence-classification model with its tokenizer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    dropout: bool = False
    """Keep the model's own dropout; off by default, since reward models overfit less than they lose signal."""


class DataConfig(Section):
    """What it trains on."""

    pairs: str
    """URL of a pairs table."""
    version: PositiveInt | None = None
    """Version of it; the newest when the run starts if not given (and then recorded)."""


class TokensConfig(Section):
    """How groups become tokens."""

    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest prompt and completion together, in tokens."""
    overlong: Literal["drop", "truncate"] = "drop"
    """drop: a longer completion goes, with its pairs; truncate: it loses its end. Both are counted and shown."""
    special_in_text: Literal["split", "refuse", "keep"] = "split"
    """Special tokens that a text spells out. split: read as plain text; refuse: such a text goes; keep: as tokens."""
    refused: Literal["drop", "stop"] = "drop"
    """A group that the chat template refuses. drop: it goes, counted; stop: the run ends and names it."""
    chat_template: str | None = None
    """Jinja chat template (text, or path of a .jinja file); the tokenizer's own if not given, else a plain one."""
    cache: str | None = None
    """URL of the token cache; by default ``tokens/`` beside the run's output."""


class BatchesConfig(Section):
    """How much goes into a step, and into a forward."""

    groups_per_step: PositiveInt = 64
    """Groups (prompts) in a global batch; InstructGPT: 64."""
    micro_batch_tokens: PositiveInt = 16384
    """Most tokens of one forward on one rank, padding included. Changes speed and memory, never the result."""
    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    """How texts lie in a forward; auto: the fastest that proves right on this model at the start of the run."""


class LossConfig(Section):
    """What a step lowers: Bradley-Terry or hinge over pairs, or Plackett-Luce over whole orders."""

    kind: Literal["bradley_terry", "hinge", "plackett_luce"] = "bradley_terry"
    """Over pairs: -log sigmoid(difference), or max(0, margin - difference); over orders: -log of their probability."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a label is wrong (conservative Bradley-Terry); for bradley_terry only."""
    use_margin: bool = True
    """A pair's margin, where it has one, is the difference wanted; plackett_luce has no margins."""
    hinge_margin: Annotated[float, Field(gt=0)] = 1.0
    """Difference at which a pair without a margin costs nothing; for hinge only."""
    centre: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared sum of a pair's rewards, which holds them around 0; TRL suggests 0.01."""

    @model_validator(mode="after")
    def _settings_are_of_this_kind(self) -> Self:
        if self.label_smoothing and self.kind != "bradley_terry":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, and {self.kind} has no smoothed form; remove it, or set "
                'loss.kind = "bradley_terry"'
            )
        if self.use_margin and self.kind == "plackett_luce":
            raise ValueError(
                "use_margin is true, and plackett_luce is over orders, which have no margins; set "
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
    warmup_fraction: Fraction = 0.03
    """Share of the steps in which the rate climbs linearly; Llama 2: 3 %."""
    final_fraction: Fraction = 0.1
    """Rate at the last step as a share of the peak, reached by a cosine; InstructGPT: 10 %."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip the global gradient norm to this; a huge value never clips."""


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) instead of full fine-tuning."""

    rank: PositiveInt = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter's product counts alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of an adapter's inputs that are dropped in training; holds whatever ``model.dropout`` says."""
    target_modules: (
        Literal["all-linear"] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    ) = "all-linear"
    """Which layers get one: all-linear, every linear layer below the head; or a list of names or ends of names."""


class EngineConfig(Section):
    """DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's weights and activations; rewards, loss and optimizer are float32 always."""
    offload_optimizer: bool = False
    """Keep the optimizer's state, and step, in the CPU's memory; ZeRO 1 to 3."""
    offload_parameters: bool = False
    """Keep the weights in the CPU's memory, each layer's until its turn comes; ZeRO 3, with offload_optimizer."""

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        for key, least in (("offload_optimizer", 1), ("offload_parameters", 3)):
            if self.__dict__[key] and self.zero_stage < least:
                raise ValueError(
                    f"{key} needs engine.zero_stage {least} or more, found {self.zero_stage}: raise it, or set "
                    f"engine.{key} = false"
                )
        if self.offload_parameters and not self.offload_optimizer:
            raise ValueError(
                "offload_parameters needs engine.offload_optimizer too, whose state is several times the weights': set "
                "it to true"
            )
        return self


class TrainingConfig(Section):
    """How long, and what is kept on the way."""

    epochs: PositiveInt = 1
    """Passes over the groups; reward models overfit from the second on (Ouyang et al. 2022)."""
    max_steps: PositiveInt | None = None
    """Stop after this many steps; the schedule ends there too."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the order, the head's initial weights and dropout."""
    log_every_steps: PositiveInt = 10
    """Steps between two lines of the log."""
    evaluate_every_steps: PositiveInt | None = None
    """Steps between two evaluations on the validation split; only at the end if not given."""
    checkpoint_every_steps: PositiveInt = 100
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    keep_best: Literal["accuracy", "log_loss"] | None = None
    """Keep one more: the best by this figure on the validation split; needs evaluate_every_steps."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What a step does whose loss or gradient is not finite: stop the run, or change nothing and go on."""
    max_skipped_steps: PositiveInt = 10
    """How many steps a run may skip so, over all its starts, before it stops."""
    storage_patience_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """How long a disk or a storage that refuses a checkpoint is asked again, before the run stops."""

    @model_validator(mode="after")
    def _best_is_evaluated(self) -> Self:
        every = self.evaluate_every_steps
        if self.keep_best and (every is None or every % self.checkpoint_every_steps):
            raise ValueError(
                f"keep_best needs evaluate_every_steps to be a multiple of checkpoint_every_steps "
                f"({self.checkpoint_every_steps}), so that every evaluation has its checkpoint; found {every}"
            )
        return self


class WorkersConfig(Section):
    """The processes that train."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Ranks: processes that train, one GPU each where GPUs are used; [least, most]: as many as there is room for."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: PositiveInt = 1
    """CPUs that Ray reserves for each worker."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced before the run gives up."""
    hang_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Without any progress for so long (or five times the longest pause so far), all workers are replaced."""
    start_timeout_seconds: PositiveInt = 60
    """How long a start waits for all workers before the cluster is counted anew; a node's boot time at least."""
    resize_seconds: PositiveInt = 60
    """With [least, most]: time between two looks at whether there is room for more workers."""

    @model_validator(mode="after")
    def _least_is_at_most_most(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"num_workers is [{self.least}, {self.most}], expected [least, most]: swap the two")
        return self

    @property
    def least(self) -> int:
        """The fewest ranks that the run goes on with."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """The most ranks that the run takes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class TrainConfig(Section):
    """A whole training run; one file under jobs/recipes/ is one of these."""

    output: str
    """URL of the run: checkpoints, TensorBoard events, summary.json and the model directory go below it."""
    model: ModelConfig
    data: DataConfig
    tokens: TokensConfig = TokensConfig()
    batches: BatchesConfig = BatchesConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """Given, even empty: train adapters and the head; not given: all weights."""
    engine: EngineConfig = EngineConfig()
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
