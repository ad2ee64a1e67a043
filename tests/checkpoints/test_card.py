"""The cards of products, the base models that they name, and uploads.

Guards against a card that says more than is known, that means something else
to Markdown or YAML than to us, or that names a path of this machine; and
against an upload that nobody asked for.
"""

import dataclasses
import json
import sys
import types

import gin
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
import numpy as np
import pytest

from mpt_jax import cli, methods
from mpt_jax.checkpoints import card, peft
from mpt_jax.checkpoints.backbone import load_backbone
from mpt_jax.checkpoints.bundle import PromptBundle, load_prompts
from mpt_jax.checkpoints.texts import TaskText
from mpt_jax.export import export
from mpt_jax.types import InputError

P, D, R = 5, 11, 3
DIGEST = f'sha256:{"a" * 64}'
TEXT = TaskText('rte a: {a} b: {b}', '{label}', ('no', 'yes'))
RECORD = {
  'backbone': {'base': 'some-one/t5', 'revision': 'b' * 40},
  'backbone_fingerprint': DIGEST,
  'data': {'rte/train': {'examples': 2490, 'digest': 'sha256:dd'}},
  'data_sets': {'rte': 'nyu-mll/glue', 'other': 'a/b'},
  'dataset': "DatasetConfig(mixture_or_task_name='rte', batch_size=32)",
  'distillation': 'None',
  'optimizer': "Optimizer(groups=(Group(pattern='prompts/prompt',"
  " learning_rate=0.3),), name='adamw', clip_norm=None)",
  'prompt_tasks': ['rte'],
  'seed': 17,
  'start': "Source(prompts='/home/me/prompts', task=None)",
}
RESULTS = {
  'scores': {'rte': {'accuracy': 71.123456, 'invalid': 0.0}},
  'metrics': {'rte': {'invalid': {'score': False}}},
  'intervals': {'rte': {'accuracy': [65.7, 76.9]}},
  'floors': {'rte': {'majority_scores': {'accuracy': 52.7}}},
  'scored': {'rte': 1600},
  'split': 'validation',
}


def _soft(**changes) -> PromptBundle:
  fields = {
    'method': 'soft',
    'stage': 'target',
    'task_names': ('rte',),
    'arrays': {'prompt': np.ones((P, D))},
    'backbone_name': 'tiny',
    'backbone_fingerprint': DIGEST,
    'step': 4000,
    'texts': {'rte': TEXT},
  }
  return PromptBundle(**(fields | changes))


def _multitask(**changes) -> PromptBundle:
  arrays = {
    'shared_prompt': np.ones((P, D)),
    'task_u': np.ones((2, P, R)),
    'task_v': np.ones((2, R, D)),
  }
  return _soft(
    **{
      'method': 'multitask',
      'task_names': ('rte', 'cb'),
      'arrays': arrays,
      'metrics': {'rte': {'accuracy': 0.5}, 'cb': {'f1': 0.25}, 'loss': 1.0},
      **changes,
    }
  )


def _run(folder, bundle):
  """A run's folder as the engine leaves it; returns its product."""
  folder.mkdir(parents=True)
  (folder / 'run_config.json').write_text(json.dumps(RECORD))
  (folder / 'results.json').write_text(json.dumps(RESULTS))
  bundle.save(str(folder / 'prompts'))
  return str(folder / 'prompts')


def _rows(text):
  """The tables' rows as a reader of Markdown has them, without the headers."""
  tokens = MarkdownIt('commonmark').enable('table').parse(ModelCard(text).text)
  rows, inside = [], False
  for token in tokens:
    if token.type in ('tbody_open', 'tbody_close'):
      inside = token.type == 'tbody_open'
    elif token.type == 'tr_open' and inside:
      rows.append([])
    elif token.type == 'inline' and inside:
      rows[-1].append(''.join(c.content for c in token.children))
  return rows


class TestText:
  def test_of_a_run(self):
    text = card.of_bundle(_soft(), made=card.Made(RECORD, RESULTS)).decode()
    assert ModelCard(text).data.to_dict() == {
      'library_name': 'mpt_jax',
      'base_model': 'some-one/t5',
      'base_model_relation': 'adapter',
      'pipeline_tag': 'text2text-generation',
      'tags': ['mpt_jax', 't5', 'soft'],
      'datasets': ['nyu-mll/glue'],
      'metrics': ['accuracy'],
    }
    rows = _rows(text)
    score = ['71.12', '65.7 to 76.9', '52.7', '1,600']
    assert ['rte', 'validation', 'accuracy', *score] in rows
    found = {row[0]: row[1] for row in rows if len(row) == 2}
    assert found['size'] == '5 vectors of width 11, 55 numbers in all'
    assert found['its revision'] == f'{"b" * 40} of some-one/t5 on the hub'
    assert found['its digest'] == DIGEST
    assert (found['steps'], found['seed']) == ('4,000', '17')
    rate = 'learning_rate[prompts/prompt] = 0.3'
    assert found['optimizer'] == f"{rate}, name = 'adamw'"
    assert found['dataset'].endswith('batch_size = 32')
    assert found['data rte/train'] == '2,490 examples, sha256:dd'
    assert "from_pretrained('some-one/t5', prompts='FOLDER')" in text
    assert 'rte a: {a} b: {b}\n' in text
    assert 'Answers: `no`, `yes`.' in text
    # The path of a machine, and what is not set.
    assert '/home/me' not in text
    assert 'None' not in text
    unknown = text.split('## Not known')[1]
    assert 'licence' in unknown
    assert 'scores' not in unknown
    assert 'data of' not in unknown

  def test_data_that_only_tfds_names(self):
    record = {**RECORD, 'data_sets': {'rte': 'glue/rte:2.0.0'}}
    text = card.of_bundle(_soft(), made=card.Made(record)).decode()
    assert ModelCard(text).data.datasets is None
    assert ['data set of rte', 'glue/rte:2.0.0'] in _rows(text)
    assert '- The names on the hub of the data of `rte`.' in text

  def test_of_a_bundle_alone(self):
    text = card.of_bundle(_multitask()).decode()
    data = ModelCard(text).data.to_dict()
    # 'tiny' is a folder's name, which the hub would take for one of its own.
    assert 'base_model' not in data
    assert data['metrics'] == ['accuracy', 'f1']
    assert ['cb', 'f1', '0.25'] in _rows(text)
    assert 'with factors of rank 3 for each task' in text
    unknown = text.split('## Not known')[1]
    for word in ('name on the hub', 'seed', 'How the text of `cb`'):
      assert word in unknown
    bare = card.of_bundle(
      _soft(backbone_name='', backbone_fingerprint='', step=0, texts={})
    ).decode()
    unknown = bare.split('## Not known')[1]
    for word in ('The base model.', 'no digest', 'no scores', 'How long'):
      assert word in unknown
    assert '## Scores' not in bare
    assert ' on a frozen T5: ' in bare
    assert ' on the frozen `tiny`: ' in text

  def test_what_its_reader_must_not_miss(self):
    record = {**RECORD, 'synthetic_data': True}
    results = {**RESULTS, 'collapsed': {'rte': "all are 'no'"}}
    text = card.of_bundle(_soft(), made=card.Made(record, results)).decode()
    assert 'synthetic-data' in ModelCard(text).data.tags
    assert ModelCard(text).data.datasets is None
    assert '> **Trained on synthetic data**' in text
    assert "`rte`, `validation`, say next to nothing**: `all are 'no'`" in text

  @pytest.mark.parametrize('kind', card.KINDS)
  def test_of_every_kind(self, kind):
    text = card.of_bundle(_multitask(), kind, ('cb',)).decode()
    library, relation, words = card.KINDS[kind]
    assert ModelCard(text).data.library_name == library
    assert ['kind', words] in _rows(text)
    assert "'FOLDER'" in text
    assert ('after MPT for' in text) == (relation == 'finetune')
    for block in text.split('```python\n')[1:]:
      compile(block.split('```')[0], 'card', 'exec')

  def test_a_checkpoint_of_t5x_is_no_name_of_the_hub(self):
    text = card.of_bundle(_soft(backbone_name='t5_base/checkpoint_100'))
    assert 'base_model' not in ModelCard(text.decode()).data.to_dict()

  def test_hostile_words_stay_words(self):
    bad = (
      'x\n---\nlicense: mit\n# Title\n<script>a</script> `` | [a](javascript:b)'
      ' ```\n| c |\x1b[2J\u202e'
    )
    record = {
      **RECORD,
      'backbone': {'base': bad, 'revision': bad},
      'data': {bad: {'examples': bad, 'digest': bad}, 'b': 3},
      'dataset': f'Config(a={bad!r})',
      'optimizer': 'Optimizer(pattern=f(), b=(C(pattern=g(1)),))',
      'seed': [bad],
      'data_sets': {'rte': bad},
    }
    results = {
      'scores': {'rte': {bad: float('nan')}},
      'split': bad,
      'intervals': {'rte': {bad: [bad, 1e400]}},
      'collapsed': {bad: bad},
      'metrics': 3,
      'best_steps': {'rte': bad},
    }
    bundle = _soft(
      backbone_name=bad,
      backbone_fingerprint=bad,
      vocabulary_digest=bad,
      package_version=bad,
      origin={bad: bad},
      metrics={'rte': {bad: 1}},
      texts={'rte': TaskText(bad, None, (bad, '`', '``a'))},
    )
    for made in (card.UNKNOWN, card.Made(record, results)):
      text = card.of_bundle(bundle, 'peft', None, made).decode()
      assert set(ModelCard(text).data.to_dict()) == {
        *('library_name', 'metrics', 'pipeline_tag', 'tags')
      }
      tokens = (
        MarkdownIt('commonmark').enable('table').parse(ModelCard(text).text)
      )
      flat = [c for t in tokens for c in (t, *(t.children or ()))]
      kinds = {token.type for token in flat}
      assert not kinds & {'html_block', 'html_inline', 'link_open', 'hr'}
      heads = [t.tag for t in tokens if t.type == 'heading_open']
      assert heads.count('h1') == 1
      assert len(heads) == 1 + text.count('\n## ')
      assert all(len(row) in (2, 3, 4, 5, 6, 7) for row in _rows(text))
      assert all(c.isprintable() or c == '\n' for c in text)
      for token in tokens:
        if token.type == 'fence' and token.info == 'python':
          compile(token.content, 'card', 'exec')


class TestFolders:
  def test_no_digest_covers_it(self, tmp_path):
    bundle = _multitask()
    for name, made in (('a', card.UNKNOWN), ('b', card.Made(RECORD, RESULTS))):
      bundle.save(str(tmp_path / name), made)
    first, second = (load_prompts(str(tmp_path / n)) for n in 'ab')
    assert first.digest == second.digest == bundle.digest
    card_of = [(tmp_path / n / 'README.md').read_bytes() for n in 'ab']
    assert card_of[0] != card_of[1]
    bundle.save(str(tmp_path / 'b'))  # Saved again it is the same.
    assert (tmp_path / 'b/README.md').read_bytes() == card_of[0]
    # It may be edited, or be none at all: a bundle of before.
    (tmp_path / 'a/README.md').write_text('mine')
    (tmp_path / 'b/README.md').unlink()
    for name in 'ab':
      assert load_prompts(str(tmp_path / name)).digest == bundle.digest
    bundle.save(str(tmp_path / 'b'))

  @pytest.mark.parametrize('form', ['peft', 'peft_composed'])
  def test_an_adapter_names_what_its_run_was_given(self, form, tmp_path):
    place = '' if form == 'peft' else 'rte'

    def exported(prompts, name):
      out = tmp_path / name
      export(prompts=prompts, output=str(out), format=form)
      config = json.loads((out / place / peft.CONFIG).read_text())
      text = (out / place / 'README.md').read_text()
      named = config['base_model_name_or_path'], config['revision']
      return named, ModelCard(text).data.base_model, '71.12' in text

    prompts = _run(tmp_path / 'run', _soft())
    known = ('some-one/t5', 'b' * 40), 'some-one/t5', True
    assert exported(prompts, 'out') == known
    # Of another run's bundle, or one that is not its product, less is known.
    alone = ('tiny', None), None, False
    other = _soft(backbone_fingerprint=DIGEST.replace('a', 'c'))
    assert exported(_run(tmp_path / 'other', other), 'out2') == alone
    key = (tmp_path / 'run/prompts').rename(tmp_path / 'run/key')
    assert exported(str(key), 'out3') == alone

  def test_it_may_be_named_anew(self, tmp_path, monkeypatch, caplog):
    demo = load_backbone('demo')
    bundle = _soft(
      arrays={'prompt': np.ones((P, demo.config.emb_dim))},
      backbone_fingerprint=demo.fingerprint,
    )
    bundle.save(str(tmp_path / 'bundle'))

    def base(given):
      path = str(tmp_path / 'out')
      prompts = str(tmp_path / 'bundle')
      export(prompts=prompts, output=path, format='peft', backbone=given)
      config = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
      return config['base_model_name_or_path']

    assert base('demo') == demo.path
    assert base('some-one/other') == 'some-one/other'
    assert 'some-one/other is not here: nobody has checked' in caplog.text
    with pytest.raises(InputError, match='trained on tiny'):
      base('demo-small')

  def test_a_backbone_that_was_trained(self, tmp_path):
    demo = load_backbone('demo').with_vocabulary()
    product = card.Product(
      kind='backbone',
      method=methods.FullFinetuning(),
      tasks=('rte',),
      size='7 numbers',
      base=demo.name,
      fingerprint=demo.fingerprint,
      vocabulary='',
      stage='target',
      step=3,
      version='1',
    )
    readme = card.text(product, card.Made(RECORD, RESULTS))
    demo.save(str(tmp_path / 'new'), {}, readme)
    assert load_backbone(str(tmp_path / 'new')).fingerprint == demo.fingerprint
    data = ModelCard((tmp_path / 'new/README.md').read_text()).data.to_dict()
    assert data['library_name'] == 'transformers'
    assert data['base_model_relation'] == 'finetune'
    demo.save(str(tmp_path / 'plain'), {})
    assert not (tmp_path / 'plain/README.md').exists()

  def test_merged_backbones_and_adapterhub(self, tmp_path):
    demo = load_backbone('demo').with_vocabulary()
    made = card.Made(RECORD)
    for method, formed in (('lora', 'merged'), ('adapter', 'adapterhub')):
      learner = methods.get(method)()
      shapes = learner.shapes(demo.config, 1)
      bundle = _soft(
        method=method,
        arrays={n: np.ones(s) for n, s in shapes.items()},
        settings=learner.settings,
        backbone_fingerprint=demo.fingerprint,
      )
      path = str(tmp_path / method)
      if formed == 'merged':
        bundle.to_merged(path, demo, made=made)
      else:
        bundle.to_adapterhub(path, made=made)
        stored = json.loads((tmp_path / method / peft.CONFIG).read_text())
        assert stored['model_name'] == 'some-one/t5'
      text = (tmp_path / method / 'README.md').read_text()
      assert ModelCard(text).data.base_model == 'some-one/t5'
      assert f'{learner.title}' in text


@pytest.fixture
def hub(monkeypatch):
  """A hub that writes down what it is asked."""
  asked = []

  class HfApi:
    def create_repo(self, repo_id, **given):
      asked.append(('create_repo', repo_id, given))

    def upload_folder(self, **given):
      asked.append(('upload_folder', given.pop('repo_id'), given))

  fake = types.SimpleNamespace(HfApi=HfApi)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', fake)
  return asked


class TestPush:
  @pytest.fixture(autouse=True)
  def _clean_gin(self):
    gin.clear_config()  # Whatever test came before.
    yield
    gin.clear_config()

  def _push(self, tmp_path, *flags, **macros):
    _run(tmp_path / 'run', _soft())
    macros = {
      'PROMPTS': str(tmp_path / 'run/prompts'),
      'OUTPUT': str(tmp_path / 'out'),
      'FORMAT': 'peft',
    } | macros
    argv = ['--gin_file=gin_configs/runs/export.gin', *flags]
    argv += [f'--gin.{name}={value!r}' for name, value in macros.items()]
    cli.main('mpt_jax.export', 'export', argv)

  def test_it_tells_what_it_would_do(self, tmp_path, hub, capsys):
    self._push(tmp_path, '--push_to=me/rte')
    out = capsys.readouterr().out
    assert f'would upload {tmp_path}/out to me/rte' in out
    for file in (tmp_path / 'out').iterdir():
      assert f'{file.stat().st_size:,} bytes  {file.name}\n' in out
    assert '\n  base_model: some-one/t5\n' in out
    assert 'nothing was uploaded' in out
    assert hub == []

  def test_it_uploads_what_it_wrote(self, tmp_path, hub, capsys):
    flags = ('--push_to=me/rte', '--upload')
    self._push(tmp_path, *flags, LICENSE='apache-2.0')
    readme = (tmp_path / 'out/README.md').read_text()
    assert ModelCard(readme).data.license == 'apache-2.0'
    assert 'licence' not in readme
    (create, *_, made), (upload, name, given) = hub
    assert (create, upload, name) == ('create_repo', 'upload_folder', 'me/rte')
    assert made == {'private': True, 'exist_ok': True}
    assert given['folder_path'] == f'{tmp_path}/out'
    assert given['allow_patterns'] == [
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
    ]
    assert 'uploaded' in capsys.readouterr().out

  def test_what_the_hub_says(self, tmp_path, hub, monkeypatch, capsys):
    def refuse(self, *args, **given):
      raise RuntimeError('401 no\nmore')

    fake = sys.modules['huggingface_hub']
    monkeypatch.setattr(fake.HfApi, 'create_repo', refuse)
    with pytest.raises(SystemExit):
      self._push(tmp_path, '--push_to=me/rte', '--upload')
    line = 'me/rte was not uploaded (RuntimeError: 401 no); `hf auth login`'
    assert line in capsys.readouterr().err

  @pytest.mark.parametrize(
    ('flags', 'macros', 'words'),
    [
      (('--upload',), {}, '--upload is given without --push_to=USER/NAME'),
      (('--push_to=rte',), {}, '--push_to=rte: expected USER/NAME'),
      (('--push_to=m/r',), {'FORMAT': 'npy'}, "'npy' has no card"),
    ],
  )
  def test_mistakes_are_one_line(self, flags, macros, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
      self._push(tmp_path, *flags, **macros)
    assert words in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()

  def test_one_product_is_one_model(self, tmp_path, monkeypatch):
    _multitask().save(str(tmp_path / 'both'))
    given = {'prompts': str(tmp_path / 'both'), 'push_to': 'me/all'}
    with pytest.raises(InputError, match='a folder for each of rte, cb'):
      export(**given, output=str(tmp_path / 'out'), format='peft_composed')
    assert not (tmp_path / 'out').exists()
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(InputError, match='pip install huggingface_hub'):
      export(
        **given, output=str(tmp_path / 'out'), format='bundle', upload=True
      )

  def test_a_path_of_this_machine_is_told(self, tmp_path, caplog, hub):
    record = {**RECORD, 'backbone': {'base': '/data/t5'}}
    prompts = _run(tmp_path / 'run', _soft())
    (tmp_path / 'run/run_config.json').write_text(json.dumps(record))
    out = str(tmp_path / 'out')
    export(prompts=prompts, output=out, format='peft', push_to='me/rte')
    assert 'a path of this machine, /data/t5: give' in caplog.text


def test_other_commands_push_nothing(capsys):
  argv = ['--gin_file=gin_configs/runs/convert.gin', '--push_to=me/x']
  with pytest.raises(SystemExit):
    cli.main('mpt_jax.convert', 'convert', argv)
  assert '--push_to: mpt_jax.convert has none' in capsys.readouterr().err


def test_every_field_of_a_product_is_told():
  """Whoever adds one says it to people, too."""
  told = {f.name for f in dataclasses.fields(PromptBundle)} - {'arrays'}
  product = {f.name for f in dataclasses.fields(card.Product)}
  renamed = {
    'task_names': 'tasks',
    'backbone_name': 'base',
    'backbone_fingerprint': 'fingerprint',
    'vocabulary_digest': 'vocabulary',
    'package_version': 'version',
  }
  assert {renamed.get(name, name) for name in told} <= product
