"""How the examples of a task are written, whoever fills the templates in."""

from collections.abc import Mapping, Sequence
import dataclasses

from mpt_jax.checkpoints.texts import (
  LABEL,
  Template,
  check_fillers,
  masked_template,
  shown,
)
from mpt_jax.data.labels import NO_LABEL, check_words
from mpt_jax.data.vocabulary import CHOSEN
from mpt_jax.types import InputError


@dataclasses.dataclass(frozen=True)
class Wording:
  """How the examples of a task are written.

  Attributes:
    inputs: template of the inputs.
    targets: template of the targets.
    labels: label words in the order of the class ids; None if the answer is
      no class.
    masked: template of the inputs of an encoder that fills a mask; None if it
      cannot read the task.
    fillers: label word -> what fills the mask for it, one word or several;
      goes with `masked`.

  Whether an encoder reads the examples is known when they are read, by the
  vocabulary that is chosen then.
  """

  inputs: str
  targets: str
  labels: Sequence[str] | None = None
  masked: str | None = None
  fillers: Mapping[str, str | Sequence[str]] | None = None

  def __post_init__(self):
    Template(self.inputs)  # So that a broken one is refused here.
    if self.labels is not None:
      object.__setattr__(self, 'labels', check_words(self.labels))
      if LABEL not in Template(self.targets).fields:
        raise InputError(
          f'label words are given, but the targets {self.targets!r} do not'
          f' hold {{{LABEL}}}'
        )
    if (self.masked is None) != (self.fillers is None):
      given = 'masked' if self.fillers is None else 'fillers'
      raise InputError(
        f'{given}={getattr(self, given)!r} alone is half of what an encoder'
        ' needs: give masked and fillers'
      )
    if self.masked is not None:
      if not isinstance(self.masked, str):
        raise InputError(
          f"masked={self.masked!r} is no template, as in '{{mask}} {{text}}'"
        )
      masked_template(self.masked)
      fillers = check_fillers(self.labels, self.fillers)
      object.__setattr__(self, 'fillers', fillers)

  @classmethod
  def create(
    cls,
    inputs: str,
    targets: str | None,
    labels: Sequence[str] | None,
    masked: str | None = None,
    fillers: Mapping[str, str | Sequence[str]] | None = None,
  ) -> 'Wording':
    """As above, but targets that are not given are the label word.

    Raises:
      InputError: if there is neither; for a broken template, or label words
        that are none.
    """
    if targets is None and labels is None:
      raise InputError('give targets or label words')
    targets = f'{{{LABEL}}}' if targets is None else targets
    return cls(inputs, targets, labels, masked, fillers)

  @property
  def fields(self) -> tuple[str, ...]:
    """What the data must have: the names in the templates."""
    names = Template(self.inputs).fields + Template(self.targets).fields
    if self.masked is not None:
      names += masked_template(self.masked).fields
    return tuple(dict.fromkeys(names))

  @property
  def filled(self) -> dict[str, tuple[str, ...]] | None:
    """Label word -> the words that fill the mask for it, in class order."""
    if self.fillers is None:
      return None
    return {label: tuple(words) for label, words in self.fillers.items()}

  @property
  def is_masked(self) -> bool:
    """Whether the chosen vocabulary's model reads the masked template."""
    return self.masked is not None and CHOSEN.masks

  @property
  def source(self) -> Template:
    """The template of what the model of the chosen vocabulary reads."""
    if self.masked is not None and self.is_masked:
      return masked_template(self.masked)
    return Template(self.inputs)

  @property
  def answers(self) -> dict[str, str]:
    """Label word -> the target text that holds it.

    The whole text if the template has no other field, else the word.
    """
    whole = self.is_label
    template = Template(self.targets)
    return {
      word: template.write({LABEL: word}) if whole else word
      for word in self.labels or ()
    }

  @property
  def is_label(self) -> bool:
    """Whether a target is told by its label alone."""
    return set(Template(self.targets).fields) == {LABEL}

  @property
  def hidden(self) -> str:
    """The target text of an example whose label is hidden."""
    return (
      Template(self.targets).write({LABEL: NO_LABEL})
      if self.labels is not None and self.is_label
      else NO_LABEL
    )

  @property
  def blank(self) -> str:
    """The input text of an example whose fields are all empty."""
    return shown(self.source.write({}))

  def classes(self) -> tuple[str, ...] | None:
    """The target text of each class id, by which `class_id` knows it.

    None without label words.

    Raises:
      InputError: if a target holds more than its label, which alone cannot
        tell the class then.
    """
    if self.labels is None:
      return None
    if not self.is_label:
      raise InputError(
        f'the class of {self.targets!r} is not told by its label alone: give'
        " targets='{label}', or a postprocess_fn"
      )
    return tuple(self.answers.values())
