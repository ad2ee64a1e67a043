"""What lies beside a backbone says what its ids are, or is refused."""

import json
import shutil

import pytest

from mpt_jax.checkpoints import huggingface, texts, vocabulary
from mpt_jax.checkpoints.backbone import (
  demo_folder,
  digest_vocabulary,
  load_backbone,
)
from mpt_jax.checkpoints.vocabulary import ORDINARY, SpecialIds, Vocabulary
from mpt_jax.models import PromptedT5
from mpt_jax.types import InputError
from tests.helpers import encoder

# Pieces of the demo's file, and rows of its embedding.
PIECES, ROWS = 358, 458
FLAGS = {'lstrip': False, 'rstrip': False, 'single_word': False}


@pytest.fixture
def make(tmp_path):
  """Writes files into a folder with the demo's SentencePiece file."""
  source = f'{demo_folder()}/spiece.model'

  def write(pieces=True, **contents):
    if pieces:
      shutil.copy(source, tmp_path / 'spiece.model')
    for name, content in contents.items():
      (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return str(tmp_path)

  return write


def _named(*tokens, first=ROWS, **flags):
  """Tokens as tokenizer_config.json has them."""
  entry = {**FLAGS, 'normalized': False, 'special': False, **flags}
  return {str(first + i): {'content': t, **entry} for i, t in enumerate(tokens)}


class TestSentinels:
  @pytest.mark.parametrize(
    ('contents', 'rows', 'count', 'first'),
    [
      ({}, None, 100, PIECES + 99),
      ({}, ROWS, 100, PIECES + 99),
      # No room, and nothing is said: none.
      ({}, ROWS - 1, 0, None),
      ({}, PIECES, 0, None),
      ({'tokenizer_config': {'extra_ids': 0}}, ROWS, 0, None),
      ({'tokenizer_config': {'extra_ids': 7}}, ROWS, 7, PIECES + 6),
      ({'tokenizer_config': {'extra_ids': 300}}, 700, 300, PIECES + 299),
      (
        {
          'special_tokens_map': {
            'additional_special_tokens': ['<extra_id_0>', '<extra_id_1>']
          }
        },
        ROWS,
        2,
        PIECES + 1,
      ),
      # Where files give ids, these count, upwards too.
      (
        {'added_tokens': {'<extra_id_0>': PIECES, '<extra_id_1>': PIECES + 1}},
        ROWS,
        0,
        PIECES,
      ),
    ],
  )
  def test_as_the_files_say(self, make, contents, rows, count, first):
    found = Vocabulary(make(**contents), rows)
    assert found.num_sentinels == count
    ids = found.encode('the <extra_id_0>')
    assert (ids == [3, first]) == (first is not None)

  def test_more_ids_than_rows(self, make):
    folder = make(tokenizer_config={'extra_ids': 300})
    message = r'has 658 ids \(spiece.model, tokenizer_config.json .* only 458'
    with pytest.raises(InputError, match=message):
      Vocabulary(folder, ROWS, owner='x')
    with pytest.raises(InputError, match='has 358 ids .* only 300 rows'):
      Vocabulary(make(tokenizer_config={}), 300)

  def test_two_numbers(self, make):
    named = ['<extra_id_0>', '<extra_id_1>']
    folder = make(
      tokenizer_config={'extra_ids': 3, 'additional_special_tokens': named}
    )
    with pytest.raises(InputError, match='extra_ids is 3, but 2 sentinels'):
      Vocabulary(folder)

  def test_beside_a_plain_file_as_in_version_0_1(self, make):
    # As SeqIO: only at the start of a word.
    found = Vocabulary(make())
    assert found.digest == digest_vocabulary(found.path)
    assert found.encode('a<extra_id_0>')[-1] != ROWS - 1
    found = Vocabulary(make(tokenizer_config={'extra_ids': 100}))
    assert found.digest == digest_vocabulary(found.path)
    assert found.encode('a<extra_id_0>')[-1] == ROWS - 1


class TestAddedTokens:
  @pytest.mark.parametrize(
    ('flags', 'text', 'same'),
    [
      ({}, 'the film<e1>great', 'the film|great'),
      ({}, '<e1> <e1>', '||'),
      ({'lstrip': True, 'rstrip': True}, 'the  <e1>  film', 'the|film'),
      ({'single_word': True}, 'the <e1> film', 'the|film'),
      ({'normalized': True}, 'the <e1> film', 'the|film'),
      ({'special': True}, ' <e1>', '|'),
    ],
  )
  def test_are_found_in_texts(self, make, flags, text, same):
    folder = make(
      tokenizer_config={'added_tokens_decoder': _named('<e1>', **flags)}
    )
    found = Vocabulary(folder)
    want = []
    for number, part in enumerate(same.split('|')):
      want += ([ROWS] if number else []) + found.encode(part)
    assert found.encode(text) == want
    assert found.size == ROWS + 1
    assert found.id_to_piece(ROWS) == '<e1>'
    assert found.decode([3, ROWS]) == 'the<e1>'

  def test_single_words_only(self, make):
    tokens = _named('film', single_word=True)
    found = Vocabulary(make(tokenizer_config={'added_tokens_decoder': tokens}))
    assert ROWS in found.encode('the film.')
    assert ROWS not in found.encode('the films')

  def test_the_longest_wins(self, make):
    found = Vocabulary(make(added_tokens={'<e>': ROWS, '<e><e>': ROWS + 1}))
    assert found.encode('<e><e><e>') == [ROWS + 1, ROWS]

  def test_without_ids_they_follow(self, make):
    special = {'additional_special_tokens': ['<s1>', '<s2>']}
    found = Vocabulary(make(special_tokens_map=special))
    assert found.added == {ROWS: '<s1>', ROWS + 1: '<s2>'}

  def test_are_part_of_the_digest(self, make):
    plain = Vocabulary(make()).digest
    first = Vocabulary(make(added_tokens={'<e1>': ROWS})).digest
    second = Vocabulary(make(added_tokens={'<e2>': ROWS})).digest
    assert len({plain, first, second}) == 3

  @pytest.mark.parametrize(
    ('contents', 'message'),
    [
      (
        {
          'added_tokens': {'<e1>': 500},
          'tokenizer_config': {'added_tokens_decoder': _named('<e1>')},
        },
        r"added_tokens.json: '<e1>' has the id 500, but .*config.json .* 458",
      ),
      (
        {'added_tokens': {'aa': 460, 'bb': 460}},
        "'bb' and 'aa' have the same id",
      ),
      (
        {'added_tokens': {'<unk>': 9}},
        "'<unk>' has the id 9, but .*gives it 2",
      ),
      ({'added_tokens': {'a': -1}}, 'a token has the id -1'),
      ({'added_tokens': {'a': '1'}}, "a token has the id '1'"),
      ({'tokenizer_config': {'extra_ids': 'x'}}, "extra_ids is 'x'"),
      ({'tokenizer_config': {'added_tokens_decoder': [1]}}, 'is no table'),
      ({'tokenizer_config': {'added_tokens_decoder': {'x': 'a'}}}, "id 'x'"),
      ({'tokenizer_config': {'eos_token': 3}}, '3 is no token'),
      (
        {'tokenizer_config': {'additional_special_tokens': 'a'}},
        'expected a list of tokens',
      ),
      (
        {
          'tokenizer_config': {'eos_token': '<unk>'},
          'special_tokens_map': {'eos_token': '</s>'},
        },
        "eos_token is '</s>', but .*tokenizer_config.json has '<unk>'",
      ),
    ],
  )
  def test_contradictions(self, make, contents, message):
    with pytest.raises(InputError, match=message):
      Vocabulary(make(**contents))


class TestSpecialIds:
  @pytest.mark.parametrize(
    ('config', 'generation', 'want'),
    [
      ({}, {}, ORDINARY),
      ({'pad_token_id': None, 'eos_token_id': [1]}, {}, ORDINARY),
      ({'decoder_start_token_id': 5}, {}, SpecialIds(0, 5, 1)),
      ({'eos_token_id': 2}, {'eos_token_id': [2]}, SpecialIds(0, 0, 2)),
      ({}, {'decoder_start_token_id': 3}, SpecialIds(0, 3, 1)),
      # T5 starts with its padding.
      ({'pad_token_id': 7}, {}, SpecialIds(7, 7, 1)),
      (
        {'pad_token_id': 1, 'eos_token_id': 2, 'decoder_start_token_id': 0},
        {},
        SpecialIds(1, 0, 2),
      ),
      # An encoder; no tokenizer beside says which token is its mask.
      ({'model_type': 'roberta'}, {}, SpecialIds(1, 1, 2, begin=0)),
      (
        {'model_type': 'xlm-roberta', 'bos_token_id': 7, 'pad_token_id': 4},
        {},
        SpecialIds(4, 4, 2, begin=7),
      ),
    ],
  )
  def test_as_the_configs_say(self, make, config, generation, want):
    folder = make(config=config, generation_config=generation)
    assert vocabulary.read_special_ids(folder) == want

  @pytest.mark.parametrize(
    ('config', 'generation', 'message'),
    [
      ({'eos_token_id': [1, 2]}, {}, r'eos_token_id is \[1, 2\]; several'),
      ({'eos_token_id': 2}, {'eos_token_id': 1}, 'is 1, but config.json has 2'),
      (
        {'decoder_start_token_id': 5},
        {'decoder_start_token_id': 0},
        'decoder_start_token_id is 0, but config.json has 5',
      ),
      ({'pad_token_id': 1}, {}, 'eos_token_id are both 1'),
      ({}, {'forced_bos_token_id': 4}, 'forced_bos_token_id is 4'),
      ({'pad_token_id': 'a'}, {}, "pad_token_id is 'a', expected an id"),
      ({'pad_token_id': True}, {}, 'pad_token_id is True'),
      ({'pad_token_id': -1}, {}, 'pad_token_id is -1'),
      ({'eos_token_id': 9, 'vocab_size': 9}, {}, 'is 9, but .* has 9 rows'),
      (
        {'model_type': 'roberta', 'bos_token_id': 1},
        {},
        'pad_token_id and bos_token_id are both 1',
      ),
      (
        {'model_type': 'roberta', 'bos_token_id': 'a'},
        {},
        "bos_token_id is 'a', expected an id",
      ),
    ],
  )
  def test_contradictions(self, make, config, generation, message):
    folder = make(config=config, generation_config=generation)
    with pytest.raises(InputError, match=message):
      vocabulary.read_special_ids(folder)

  @pytest.mark.parametrize(
    ('config', 'said', 'message'),
    [
      (
        {'eos_token_id': 2},
        {'eos_token': '</s>'},
        "'</s>', whose id is 1, .* 2",
      ),
      ({'pad_token_id': 3}, {'pad_token': '<pad>'}, 'whose id is 0, .* 3'),
    ],
  )
  def test_the_tokenizers_marks_are_the_models(
    self, make, config, said, message
  ):
    with pytest.raises(InputError, match=message):
      Vocabulary(make(config=config, tokenizer_config=said))

  def test_padding_is_0_inside(self, make):
    folder = make(
      config={
        'pad_token_id': 3,
        'eos_token_id': 1,
        'decoder_start_token_id': 0,
      }
    )
    found = Vocabulary(folder)
    assert found.special.of_model() == {'start_id': 3, 'eos_id': 1}
    ids = found.encode('a film')
    assert 3 not in ids
    assert found.model_ids('a film') == ids
    assert found.decode_model([*ids, 0, 0]) == 'a film'
    # Word 3 is the padding here: nothing in a text stands for it.
    assert found.encode('the film')[0] == 3
    assert found.model_ids('the film')[0] == found.unk_id

  def test_only_what_is_not_ordinary_changes_the_fingerprint(self, tmp_path):
    prints = []
    for number, change in enumerate(({}, {'decoder_start_token_id': 5})):
      folder = tmp_path / str(number)
      shutil.copytree(demo_folder(), folder)
      config = json.loads((folder / 'config.json').read_text())
      (folder / 'config.json').write_text(json.dumps(config | change))
      prints.append(load_backbone(str(folder)).fingerprint)
    # Those of version 0.1, which its bundles and runs hold.
    loaded = load_backbone(demo_folder())
    assert prints[0] == loaded.fingerprint
    assert prints[0].startswith('sha256:b7cf07ffc145fdc6f6a428c314f76dec')
    model = PromptedT5(loaded.config, **loaded.special_ids.of_model())
    assert repr(model).endswith('z_loss=0.0, eos_id=1)')
    assert prints[0] != prints[1]


class TestBytes:
  def test_found_by_its_class(self, make):
    for name in ('tokenizer_config', 'config'):
      contents = {name: {'tokenizer_class': 'ByT5Tokenizer'}}
      found = Vocabulary(make(pieces=False, **contents))
      assert found.is_bytes
      assert found.size == 384
      assert found.encode('é<extra_id_0>') == [198, 172, 259]
      assert found.decode([198, 172, 259]) == 'é<extra_id_0>'
      # A letter cut in two, and the marks' own white space.
      assert found.decode([198]) == ''
      assert found.encode('a </s> b') == [100, 1, 101]

  @pytest.mark.parametrize(
    ('count', 'rows', 'size'),
    [(0, 384, 259), (300, 600, 559), (None, 300, 259)],
  )
  def test_sentinels_go_upwards(self, make, count, rows, size):
    config = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': count}
    found = Vocabulary(make(pieces=False, tokenizer_config=config), rows)
    assert found.size == size
    assert (found.encode('<extra_id_1>') == [260]) == (size > 259)

  def test_a_json_of_another_class(self, make):
    folder = make(pieces=False, config={'tokenizer_class': 'T5Tokenizer'})
    with pytest.raises(InputError, match='does not name ByT5Tokenizer'):
      Vocabulary(f'{folder}/config.json')
    with pytest.raises(InputError, match='has no vocabulary'):
      Vocabulary(folder)


class TestTokenizerJson:
  def test_of_llama(self, testdata, tmp_path):
    pytest.importorskip('tokenizers', reason='tokenizers is not installed')
    folder = tmp_path / 'pile'
    shutil.copytree(testdata / 'vocabulary/pile', folder)
    content = json.loads((folder / 'tokenizer.json').read_text())
    # Transformers 4 said so.
    content['model']['unk_token'] = '<unk>'
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    found = Vocabulary(str(folder))
    assert found.special == SpecialIds(0, 0, 2)
    # The unknown is the padding: it is in no text, what is no piece is bytes.
    assert found.unk_id == 0
    assert 0 in found.encode('red <unk> hat')
    assert 0 not in found.model_ids('red <unk> hat')
    assert found.decode(found.model_ids('ein Käse')).strip() == 'ein Käse'
    content['model']['byte_fallback'] = False
    (folder / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(InputError, match='but the backbone pads with it'):
      Vocabulary(str(folder))
    (folder / 'tokenizer.json').rename(folder / 'tokenizer.model')
    with pytest.raises(
      InputError, match='save the tokenizer with transformers'
    ):
      Vocabulary(str(folder))

  def test_needs_the_library(self, make, monkeypatch):
    def absent(name):
      raise ImportError(name)

    monkeypatch.setattr(vocabulary.importlib, 'import_module', absent)
    folder = make(pieces=False, tokenizer={})
    message = 'tokenizers, which is not installed: pip install tokenizers'
    with pytest.raises(InputError, match=message):
      Vocabulary(folder)

  def test_damaged(self, make):
    pytest.importorskip('tokenizers')
    with pytest.raises(InputError, match='tokenizer.json cannot be read'):
      Vocabulary(make(pieces=False, tokenizer={'model': 3}))

  def test_says_what_is_on_top_of_pieces_too(self, make):
    added = [{'id': ROWS, 'content': '<e1>', **FLAGS}]
    found = Vocabulary(make(tokenizer={'added_tokens': added}))
    assert found.encode('the <e1>') == [3, ROWS]


ENCODER = {'model_type': 'roberta', 'vocab_size': 400}
WORDS = (' yes', ' no')


@pytest.fixture
def folder(tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  encoder.write(tmp_path, WORDS)
  return tmp_path


def _edit(path, **changes):
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestEncoders:
  def test_ids_of_a_text(self, folder):
    found = Vocabulary(str(folder))
    special = found.special
    assert special.of_model() == {'mask_id': special.mask, 'eos_id': 2}
    assert special.facts() == {'pad': 1, 'start': 1, 'end': 2, 'begin': 0}
    [yes], [no] = map(found.encode, WORDS)
    text = f'{texts.MASK} yes{texts.SEPARATOR}{texts.MASK}'
    assert found.encode(text) == [special.mask, yes, 2, 2, special.mask]
    # Of a whole input, in our ids.
    assert found.input_ids(' no') == [1, no]
    assert found.input_ids(texts.BEGIN + ' no') == [1, no]
    assert found.decode_model([1, no, 0, 2, yes]) == ' no'
    # The mask swallows the blanks before it.
    assert found.encode(f' no \n{texts.MASK}') == [no, special.mask]

  def test_tokens_that_are_added(self, folder):
    before = Vocabulary(str(folder))
    size = before.size
    (folder / 'added_tokens.json').write_text(json.dumps({'<e1>': size}))
    _edit(folder / 'config.json', vocab_size=size + 1)
    found = Vocabulary(str(folder))
    assert found.encode('<e1> yes<mask>')[0] == size
    assert found.special == before.special
    assert found.special.mask not in found.encode('<e1> yes<mask>')
    assert (found.size, found.digest == before.digest) == (size + 1, False)
    # As a tokenizer that holds its mask as an added token alone has it.
    library = pytest.importorskip('tokenizers')
    whole = json.loads(before._core._tokenizer.to_str())
    del whole['model']['vocab']['<mask>']
    tokenizer = library.Tokenizer.from_str(json.dumps(whole))
    tokenizer.add_tokens(['<e1>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    again = Vocabulary(str(folder))
    assert again.encode('<e1> yes<mask>') == found.encode('<e1> yes<mask>')

  def test_the_mask_has_any_name(self, folder):
    vocab = json.loads((folder / 'vocab.json').read_text())
    vocab['[M]'] = vocab.pop('<mask>')
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    with pytest.raises(InputError, match=r'which token is the mask .*<mask>'):
      Vocabulary(str(folder))
    for token in '[M]', {'content': '[M]', 'lstrip': True}:
      for name in 'tokenizer_config', 'special_tokens_map':
        path = folder / f'{name}.json'
        path.write_text(json.dumps({'mask_token': token}))
        found = Vocabulary(str(folder))
        assert found.special.mask == vocab['[M]']
        assert found.special.mask not in found.encode('[M] <mask>')
        path.unlink()

  def test_another_mask_than_the_backbones(self, folder):
    with pytest.raises(InputError, match='of the backbone is 9; give'):
      Vocabulary(str(folder), None, SpecialIds(1, 1, 2, begin=0, mask=9))
    given = SpecialIds(1, 1, 2, begin=0)
    assert Vocabulary(str(folder), None, given).special.mask is not None

  @pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
      ('merges.txt', '#version\nq w e\n', r"merges.txt:2: 'q w e' is no pair"),
      ('merges.txt', 'q w\n', r"merges.txt:1: 'q w' is no pair of pieces"),
      ('merges.txt', '\ud800', 'cannot read the vocabulary .*merges.txt'),
      ('vocab.json', '{"a": "b"}', "vocab.json: 'a' has the id 'b'"),
      ('vocab.json', '{"a": 1', 'vocab.json'),
      ('vocab.json', '{"<mask>": -1}', "'<mask>' has the id -1"),
    ],
  )
  def test_damaged(self, folder, name, content, message):
    raw = content.encode('utf-8', 'surrogatepass')
    (folder / name).write_bytes(raw)
    with pytest.raises(InputError, match=message):
      Vocabulary(str(folder))

  def test_says_what_to_save(self, make):
    folder = make(pieces=False, config=ENCODER, vocab={})
    assert vocabulary.find_vocabulary(folder) is None
    message = 'neither tokenizer.json nor vocab.json and merges.txt; save the'
    with pytest.raises(InputError, match=message):
      Vocabulary(folder)

  def test_its_own_ids_are_its_vocabularys(self, folder):
    before = Vocabulary(str(folder)).digest
    encoder.write(folder, (*WORDS, ' maybe'))
    assert Vocabulary(str(folder)).digest != before
    encoder.write(folder, WORDS)
    assert Vocabulary(str(folder)).digest == before
    contents = vocabulary.files_of(str(folder))
    assert set(contents) == {'vocab.json', 'merges.txt'}

  def test_pieces_that_a_user_could_type(self, make):
    """XLM-R's pieces hold its special tokens."""
    pytest.importorskip('tokenizers', reason='tokenizers is not installed')
    special = ('<s>', '<pad>', '</s>', '<unk>')
    pieces = ['\u2581', '\u2581good', *'<>/masunkpd']
    scores = [[p, -4.0 - 0.1 * len(pieces)] for p in pieces]
    vocab = [*([p, 0.0] for p in special), *scores, ['<mask>', 0.0]]
    mask = len(vocab) - 1
    flags = {**FLAGS, 'normalized': False, 'special': True}
    added = [
      {'id': i, 'content': p, **flags} for i, p in enumerate(special)
    ] + [{'id': mask, 'content': '<mask>', **flags, 'lstrip': True}]
    metaspace = {
      **{'type': 'Metaspace', 'replacement': '\u2581'},
      **{'prepend_scheme': 'always', 'split': True},
    }
    tokenizer = {
      'version': '1.0',
      'added_tokens': added,
      'pre_tokenizer': metaspace,
      'decoder': metaspace,
      'model': {'type': 'Unigram', 'unk_id': 3, 'vocab': vocab},
    }
    config = {'model_type': 'xlm-roberta', 'vocab_size': len(vocab)}
    found = Vocabulary(make(pieces=False, config=config, tokenizer=tokenizer))
    assert found.special.mask == mask
    assert found.encode(f'{texts.MASK} good') == [mask, 5]
    for typed in (*special, '<mask>', 'good<s>'):
      ids = found.encode(typed)
      assert not {0, 1, 2, 3, mask}.intersection(ids), typed
    assert found.encode('\u20ac')[-1] == found.unk_id == 3


@pytest.mark.parametrize('pad', [0, 1, 457])
def test_a_saved_backbone_keeps_its_ids(tmp_path, pad):
  loaded = load_backbone(demo_folder())
  special = SpecialIds(pad=pad, start=4, end=2)
  for name in ('first', 'second'):
    huggingface.save_huggingface(
      str(tmp_path / name),
      loaded.config,
      loaded.params,
      vocabulary_file=loaded.vocabulary_file,
      special_ids=special,
    )
    loaded = load_backbone(str(tmp_path / name))
    assert loaded.special_ids == special
  files = [
    (tmp_path / name / 'model.safetensors').read_bytes()
    for name in ('first', 'second')
  ]
  assert files[0] == files[1]
