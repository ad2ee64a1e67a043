"""What a run leaves, as a notebook takes it up."""

from collections.abc import Callable, Mapping
import functools
import os

import numpy as np

from mpt_jax.checkpoints import bundle as bundle_lib
from mpt_jax.checkpoints import files
from mpt_jax.checkpoints.backbone import Backbone
from mpt_jax.engine.scores import format_scores
from mpt_jax.engine.writers import METRICS, read_metrics
from mpt_jax.pretrained import PromptedT5
from mpt_jax.types import InputError

# The product in MODEL_DIR: a bundle, or what was trained whole.
PROMPTS = 'prompts'
BACKBONE = 'backbone'


class Run:
  """A run that is finished.

  Attributes:
    model_dir: its folder.
    scores: {task: {metric: value}} of the evaluation split, of the product;
      NaN is a score that is not defined. Empty without an evaluation.
    step_bytes: what the largest compiled step needs on a device: parameters,
      optimizer, batch and what is held in between. 0 if nobody knows: the
      platform does not say, or the run was finished before.
  """

  def __init__(
    self,
    model_dir: str,
    scores: Mapping[str, Mapping[str, float | None]],
    load: Callable[[], Backbone],
    step_bytes: int = 0,
  ):
    """Reads nothing yet.

    Args:
      model_dir: the folder.
      scores: its scores; None is a score that is not defined.
      load: returns the backbone that it trained on.
      step_bytes: see the class.
    """
    self.model_dir, self.step_bytes = model_dir, step_bytes
    self.scores = {
      task: {n: np.nan if v is None else v for n, v in values.items()}
      for task, values in scores.items()
    }
    self._load = load

  @functools.cached_property
  def history(self) -> dict[str, np.ndarray]:
    """What was logged, as columns of equal length.

    `pandas.DataFrame(run.history)` and
    `pyplot.plot(run.history['step'], run.history['train/loss'])` take it.

    Returns:
      'step' -> the logged steps, int; name -> its values at them, float, NaN
      where it was not logged.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in read_metrics(os.path.join(self.model_dir, METRICS)):
      rows.setdefault(line.pop('step'), {}).update(line)
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {'step': np.array(list(rows), int)}
    for name in names:
      values = [row.get(name, np.nan) for row in rows.values()]
      columns[name] = np.array(values, float)
    return columns

  @functools.cached_property
  def bundle(self) -> bundle_lib.PromptBundle | None:
    """What was learned; None of a run that trained the backbone itself."""
    if files.is_folder(os.path.join(self.model_dir, BACKBONE)):
      return None
    return bundle_lib.load_prompts(os.path.join(self.model_dir, PROMPTS))

  @functools.cached_property
  def model(self) -> PromptedT5:
    """What answers texts, as `PromptedT5.from_pretrained` gives it.

    Raises:
      InputError: if the backbone has no vocabulary.
    """
    if self.bundle is None:
      folder = os.path.join(self.model_dir, BACKBONE)
      return PromptedT5.from_pretrained(folder)
    backbone = self._load()
    if backbone.vocabulary is None:
      raise InputError(
        f'the backbone {backbone.name} has no vocabulary: its run can be'
        ' scored, but takes no text'
      )
    return PromptedT5.of(backbone, self.bundle, backbone.vocabulary)

  def __repr__(self) -> str:
    """'Run('runs/rte': rte accuracy 71.5)'."""
    told = '; '.join(
      f'{task} {format_scores(values)}' for task, values in self.scores.items()
    )
    return f'Run({self.model_dir!r}: {told or "no scores"})'
