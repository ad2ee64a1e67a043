"""Tasks whose data TFDS does not have: files of your own, or of the hub.

Sources and targets of the study of prompt transferability (Su et al., NAACL
2022). The files of a split lie in the data folder (`--data_dir`, or
`--hf_data_dir`), where `python -m tasks.download` puts those of the hub:

  DIR/OWNER/NAME/…      as the hub has them
  DIR/TASK/train.jsonl  or .csv, .tsv, .parquet: written by you

SemEval's reviews of laptops and restaurants are XML, of which `tasks.semeval`
makes such files.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os

from mpt_jax import data
from mpt_jax.data.sources import RecordsSource
from mpt_jax.data.wording import Wording
from mpt_jax.types import HUB, InputError, local_path
from tasks import fillers, hub
from tasks.glue import ACCURACY

# As the hub names the file of a split, below a data set's folder; and as a
# user does.
_OF_HUB = ('{}.parquet', '{}-00000-of-00001.parquet', '{}/0000.parquet')
_OF_USER = ('{}.jsonl', '{}.csv', '{}.tsv', '{}.parquet')
_HELD_OUT = {'train': 'train[1000:]', 'validation': 'train[:1000]'}
_SEMEVAL = {'train': 'train[300:]', 'validation': 'train[:300]', 'test': 'test'}
_OFFICIAL = {name: name for name in ('train', 'validation', 'test')}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
  """One task.

  Attributes:
    name: its SeqIO name.
    inputs: template of the inputs.
    labels: label words in the order of the class ids.
    masked: template of an encoder's inputs.
    fillers: label word -> what fills the mask for it.
    splits: our split -> split of the files, or a slice of it.
    repo: where the hub has the data; '' if it does not.
    config: the folder in it; '' is the top.
    revision: the branch that holds Parquet files.
  """

  name: str
  inputs: str
  labels: tuple[str, ...]
  masked: str
  fillers: Mapping[str, str]
  splits: Mapping[str, str]
  repo: str = ''
  config: str = ''
  revision: str = 'main'

  @property
  def hub_data(self) -> hub.HubData | None:
    """What fetches the data from the hub; None if it does not have them."""
    if not self.repo:
      return None
    return hub.HubData(
      repo=self.repo, config=self.config, columns={}, revision=self.revision
    )

  def file(self, root: str, split: str) -> str:
    """The file of a split; where none is there, the one to be written."""
    paths = [os.path.join(root, self.name, f.format(split)) for f in _OF_USER]
    known = self.hub_data
    if known and (folder := known.place(root)):
      names = [*_OF_HUB, known.cached + '-{}.arrow']
      paths += [os.path.join(folder, name.format(split)) for name in names]
    return next(filter(os.path.isfile, paths), paths[0])


class OwnSource(RecordsSource):
  """The files of a task in the data folder in use."""

  def __init__(self, own: Own, columns: Sequence[str]):
    """Names the data; touches no disk."""
    parts = {part.partition('[')[0]: '' for part in own.splits.values()}
    super().__init__(parts, own.splits, columns, {}, own.labels)
    self._own = own

  @property
  def data_set(self) -> str:
    """What a card calls the data."""
    return self._own.repo

  def _file(self, split: str) -> str | None:
    root = local_path(data.get_data_dir().removeprefix(HUB))
    return self._own.file(root, split)

  def check(self, split: str) -> None:
    """Checks that a split is there, and every row of it."""
    if split in self.splits:
      path = self._file(self._slices[split].split)
      if path is not None and not os.path.exists(path):
        how = (
          f'fetch it (python -m tasks.download {self._own.name}) or write it'
          if self._own.repo
          else 'write it (python -m tasks.semeval FILE.xml)'
        )
        raise InputError(f'{path} is missing: {how}; see docs/tasks.md')
    super().check(split)


_TWO_SIDES = ('unacceptable', 'acceptable')
_JUDGED = {'unacceptable': ' wrong', 'acceptable': ' right'}


def _ethics(name: str, inputs: str, masked: str) -> Own:
  return Own(
    name=name,
    inputs=inputs,
    labels=_TWO_SIDES,
    masked=masked,
    fillers=_JUDGED,
    splits={**_HELD_OUT, 'test': 'test'},
    repo='EleutherAI/hendrycks_ethics',
    config=name,
    revision=hub.CONVERTED,
  )


def _reviews(name: str) -> Own:
  return Own(
    name=name,
    inputs=f'{name} aspect: {{aspect}} sentence: {{sentence}}',
    labels=tuple(fillers.ASPECT),
    masked='{mask} {sentence}{sep}{aspect}',
    fillers=fillers.ASPECT,
    splits=_SEMEVAL,
  )


# Every such task by name.
OWN: Mapping[str, Own] = {
  own.name: own
  for own in (
    Own(
      name='rotten_tomatoes',
      inputs='rotten_tomatoes text: {text}',
      labels=('negative', 'positive'),
      masked='{mask} {text}',
      fillers=fillers.SENTIMENT,
      splits=_OFFICIAL,
      repo='cornell-movie-review-data/rotten_tomatoes',
    ),
    Own(
      name='tweet_sentiment',
      inputs='tweet_sentiment text: {text}',
      labels=tuple(fillers.TWEET),
      masked='{mask} {text}',
      fillers=fillers.TWEET,
      splits=_OFFICIAL,
      repo='cardiffnlp/tweet_eval',
      config='sentiment',
    ),
    _reviews('laptop'),
    _reviews('restaurant'),
    _ethics(
      'deontology',
      'deontology excuse: {excuse} scenario: {scenario}',
      '{mask} {scenario}{sep}{excuse}',
    ),
    _ethics('justice', 'justice scenario: {scenario}', '{mask} {scenario}'),
  )
}


def _register(own: Own) -> None:
  wording = Wording.create(
    own.inputs, None, own.labels, own.masked, own.fillers
  )
  data.register_task(
    own.name,
    OwnSource(own, wording.fields),
    inputs=own.inputs,
    labels=own.labels,
    masked=own.masked,
    fillers=own.fillers,
    metric_fns=ACCURACY,
  )


for _own in OWN.values():
  _register(_own)
