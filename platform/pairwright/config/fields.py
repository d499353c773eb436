"""Configuration of [fields]: where a record of a foreign layout keeps each part of an annotation.

The files under ``data/ingest/adapters/known/`` are such tables too: a user's layout is written like those that come
with the package.
"""

from typing import Self

from pydantic import Field, model_validator

from pairwright.config.section import Section

TIE = "tie"
BOTH_BAD = "both bad"
"""What a word of ``words`` may stand for beside one of the ``sides``: both count as a tie, the second is kept."""

_JUDGEMENTS = ("rank", "score", "ranks", "scores")
_OF_SIDES = ("winner", "won", "strength", "side_scores", "side_ranks", "order")


class FieldPaths(Section):
    """Dotted paths, ``[]`` for each of a list, ``["a.b"]`` for a key with a dot; `a | b` takes the first that is there.

    Completions stand in a list (``completions``), in fields of their own (``chosen`` and ``rejected``, or ``sides`` and
    what says which is better), or each in a record of its own (``group_by``). Without any of them, the table changes
    what it names in the layout that ``format`` names or that is recognised.
    """

    prompt: str | None = None
    """Path of the prompt: a text, or a conversation. Without one, sides that are conversations say it."""
    system: str | None = None
    """Path of the system prompt, the first turn."""
    history: str | None = None
    """Path of earlier turns: a conversation, or a list of [what the user said, what the assistant said]."""
    input: str | None = None
    """Path of a text that follows the prompt on a line of its own, as in Alpaca's layout."""
    tools: str | None = None
    """Path of the functions that the model could call, for the chat template."""
    template_kwargs: str | None = None
    """Path of an object of further variables of the chat template."""
    implicit_prompt: bool = False
    """Take what texts begin with for the prompt where no field holds one, as TRL does."""
    interleaved: bool = False
    """The prompt and each side are lists of texts: what the user and the assistant said in turn."""

    completions: str | None = None
    """Path of the list of completions; the paths of text, completion_id, model, rank and score start at an item."""
    text: str | None = None
    """Path of a completion's text, or of a conversation that ends in it, within one item; none if it is the item."""
    completion_id: str | None = None
    """Path of a completion's id within one item."""
    model: str | None = None
    """Path of the name of the model that wrote it, within one item."""
    rank: str | None = None
    """Path of a completion's rank within one item."""
    score: str | None = None
    """Path of a completion's score within one item, higher is better."""
    ranks: str | None = None
    """Path of the list of ranks, where it stands beside the completions."""
    scores: str | None = None
    """Path of the list of scores, where it stands beside the completions."""
    first_rank: int = 1
    """The best rank: 1, or 0."""
    group_by: tuple[str, ...] = ()
    """Each record is one completion: successive records with the same values at these paths are one annotation."""

    tree: str | None = None
    """Path of the replies to a message of a tree; prompt is the first message, text, role and rank start at one."""
    role: str | None = None
    """Path of who wrote a message of a tree."""

    chosen: str | None = None
    """Path of the better completion: a text, a message, or a conversation that ends in it."""
    rejected: str | None = None
    """Path of the worse one."""
    several: bool = False
    """chosen and rejected are lists of texts: each of the first is better than each of the second."""
    transcripts: bool = False
    """chosen and rejected are transcripts of Human: and Assistant:, prompt and reply in one text."""
    sides: tuple[str, ...] = ()
    """Paths of two completions or more; winner, won, strength, side_scores, side_ranks or order judges them."""
    optional_sides: bool = False
    """A record may leave sides blank, with their ranks and scores; it has two at least."""
    models: tuple[str, ...] = ()
    """Path of the model of each side, of chosen and rejected in this order."""
    side_scores: tuple[str, ...] = ()
    """Path of the score of each side, of chosen and rejected in this order; higher is better."""
    side_ranks: tuple[str, ...] = ()
    """Path of the rank of each side, in this order; the best has first_rank."""
    order: str | None = None
    """Path of the sides, best first, by words or paths: a list (of lists where tied), or text such as A > B = C."""
    winner: str | None = None
    """Path of the word that says which side is better."""
    words: dict[str, str] = {}
    """Word of the winner, as JSON writes it, or of the order -> path of that side, "tie" or "both bad"."""
    won: tuple[str, ...] = ()
    """Path of a 1 or true for each side: of the better one."""
    tie: str | None = None
    """Path of a 1 or true for a tie, where ``won`` says which side is better; without it, no mark is a tie."""
    strength: str | None = None
    """Path of a number whose sign says which of two sides is better; 0 is a tie."""
    positive: str | None = None
    """Path of the side that a positive strength means."""
    strengths: dict[str, str] = {}
    """Size of a strength -> its grade; without it, the size is the difference of scores."""
    margin: str | None = None
    """Path of how much better the chosen one is: a difference of scores, at least 0."""

    grade: str | None = None
    """Path of the grade of two completions: significantly better, better, slightly better or negligibly better."""
    id: str | tuple[str, ...] | None = None
    """Path of the record's id, or paths whose values make it; a hash of the record where there is none."""
    unique_ids: bool = True
    """Whether an id names one record alone; where not, the first 8 digits of the record's hash follow it."""
    annotator: str | None = None
    """Path of who ranked."""
    subset: str | None = None
    """Path of the subset."""
    created_at: str | None = None
    """Path of the time of the judgement, ISO 8601."""
    constants: dict[str, str] = {}
    """annotator, subset or created_at -> what it is for all records."""
    metadata: dict[str, str] = {}
    """Name in metadata -> path of its value, kept as a string."""
    keep: tuple[str, ...] = ()
    """Paths of fields that go into metadata under their own names."""
    ignore: tuple[str, ...] = ()
    """Paths of fields that mean nothing for a preference. Any other field without a place refuses its record."""
    repeats: tuple[str, ...] = Field(default=(), max_length=100)
    """Paths of fields that say once more what stands elsewhere; one that says anything else refuses its record."""
    roles: dict[str, str] = {}
    """Name of a speaker -> system, user, assistant or tool, beside those that are known."""

    @property
    def is_whole(self) -> bool:
        """Whether the table says where completions stand, and so needs no other layout below it."""
        return bool(self.completions or self.group_by or self.tree or self.sides or self.chosen or self.rejected)

    def given(self) -> dict[str, object]:
        """Return what was set, by key, in the order above."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @model_validator(mode="after")
    def _one_judgement_of_one_kind(self) -> Self:
        if not self.is_whole:
            return self
        pair = self.chosen is not None or self.rejected is not None
        given_by = {"completions": self.completions, "group_by": self.group_by, "tree": self.tree}
        given_by |= {"sides": self.sides, "chosen": pair}
        given = [name for name, value in given_by.items() if value]
        if len(given) > 1:
            raise ValueError(f"completions stand in one place; found {' and '.join(given)}")
        if pair and (self.chosen is None or self.rejected is None):
            raise ValueError("chosen and rejected go together; found one of them")
        if self.sides and len(self.sides) < 2:
            raise ValueError("sides are two paths or more; found one")
        if self.prompt is None and (self.completions or self.group_by or self.tree):
            raise ValueError("prompt is missing: the path of what the completions answer")
        if (self.group_by or self.tree) and self.text is None:
            raise ValueError("text is missing: the path of the completion in each record or message")
        if self.tree and self.role is None:
            raise ValueError("role is missing: the path of who wrote a message of the tree")
        if self.tree and (self.ranks or self.scores):
            raise ValueError("a tree is judged by rank or score of each message; found ranks or scores")
        self._check_judgement(pair=pair)
        return self

    def _check_judgement(self, *, pair: bool) -> None:
        if not pair:
            names = _OF_SIDES if self.sides else _JUDGEMENTS
            given = [name for name in names if getattr(self, name)]
            if len(given) != 1:
                found = " and ".join(given) if given else "none of them"
                listed = f"{', '.join(names[:-1])} and {names[-1]}"
                raise ValueError(f"exactly one of {listed} says how completions were judged; found {found}")
        num_sides = 2 if pair else len(self.sides)
        for name in ("models", "side_scores", "side_ranks", "won"):
            if (length := len(getattr(self, name))) not in (0, num_sides):
                raise ValueError(f"{name} has one path for each of {num_sides} sides; found {length}")
        if self.winner is not None and not self.words:
            raise ValueError('words is missing: what each word of the winner means, such as {"model_a" = "answer_a"}')
        allowed = (*self.sides, TIE, BOTH_BAD)
        if odd := [word for word, side in self.words.items() if side not in allowed]:
            raise ValueError(f"words.{odd[0]}: expected one of {', '.join(allowed)}; found {self.words[odd[0]]}")
        if self.strength is not None and (len(self.sides) != 2 or self.positive not in self.sides):
            raise ValueError("strength needs two sides, and positive: the one that a positive number means")
        if self.optional_sides and not self.sides:
            raise ValueError("optional_sides needs sides")
        if odd := sorted(set(self.constants) - {"annotator", "subset", "created_at"}):
            raise ValueError(f"constants: expected annotator, subset or created_at; found {odd[0]}")


class LayoutFile(Section):
    """A layout in a file of its own: one of the package's, or one that ``format = "FILE.toml"`` names."""

    what: str = ""
    """Whose layout it is, and where it is described."""
    examples: tuple[str, ...] = ()
    """Records of it, as JSON."""
    requires: tuple[str, ...] = ()
    """Fields that a record must have, beside what its parts need, to be recognised as one of this layout."""
    fields: FieldPaths
    """Where the parts of a record stand."""
