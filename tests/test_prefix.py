"""Prefixes and per-layer prompts: counts, what is refused, what is kept."""

import dataclasses

import numpy as np
import pytest

from mpt_jax import methods, t5
from mpt_jax.checkpoints.bundle import PromptBundle
from mpt_jax.types import InputError
from tests.helpers import tiny


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'length': 0}, 'PREFIX_LENGTH is 0, expected 1 or more'),
    ({'hidden': 0}, 'PREFIX_HIDDEN is 0'),
    ({'peft_layers': 0}, 'peft_layers is 0'),
    ({'places': ('encoder', 'decode')}, "'decode'.* mean 'decoder'"),
    ({'places': ('cross', 'cross')}, "'cross', expected .* each once"),
    ({'places': ()}, r'PREFIX_PLACES = \(\) must name'),
    ({'positions': 'shift'}, "'shift', expected .* mean 'shifted'"),
    ({'peft_layers': 3}, "has places = .'decoder',. and no hidden layer"),
  ],
)
def test_bad_settings_of_a_prefix_are_refused(settings, said):
  with pytest.raises(InputError, match=said):
    methods.Prefix(**settings)


@pytest.mark.parametrize(
  ('settings', 'said'),
  [
    ({'length': 0}, 'PROMPT_LENGTH is 0, expected 1 or more'),
    ({'combine': 'adds'}, "'adds', expected replace or add; .* 'add'"),
  ],
)
def test_bad_settings_of_per_layer_prompts_are_refused(settings, said):
  with pytest.raises(InputError, match=said):
    methods.DeepPrompts(**settings)


@pytest.mark.parametrize('method', [methods.Prefix(), methods.DeepPrompts()])
def test_packed_rows_are_refused(method):
  with pytest.raises(InputError, match="give PADDING = 'bucket'"):
    method.check_can(pack=True)


def test_counts_for_t5_base():
  config = t5.get_config('t5_base')
  decoder = {'length': 100, 'places': ('decoder',)}
  for method, count in (
    (methods.Prefix(), 5_529_600),
    (methods.Prefix(**decoder), 1_843_200),
    # For even n half of PEFT's numbers are never used.
    (methods.Prefix(**decoder, peft_layers=12), 1_843_200),
    (methods.Prefix(hidden=512), 29_778_432),
    (methods.DeepPrompts(), 921_600),
    (methods.DeepPrompts(combine='add'), 998_400),
  ):
    for own in (method, dataclasses.replace(method, shared=True)):
      tasks = 1 if own.shared else 3
      assert own.num_parameters(config, 3) == tasks * count
      shapes = own.shapes(config, 3).values()
      assert sum(map(np.prod, shapes)) == tasks * count


def test_a_prefix_of_pefts_form_is_for_no_deeper_decoder():
  """In PEFT itself the layers beyond would fail with an IndexError."""
  method = methods.Prefix(2, ('decoder',), peft_layers=2)
  config = tiny.CONFIG.replace(num_decoder_layers=3)
  with pytest.raises(InputError, match='for 2 layers .* a decoder of 3'):
    method.shapes(config, 1)


def _bundle(method, tasks=('a',)):
  """What a run of a method may have left."""
  key = np.array([0, 1], np.uint32)
  return PromptBundle(
    method=method.name,
    stage='target',
    task_names=tasks,
    arrays=method.fresh(tiny.CONFIG, len(tasks), key),
    settings=method.settings,
  )


@pytest.mark.parametrize('method', [methods.Prefix(2), methods.LoRA()])
def test_a_run_starts_from_a_task_of_another_one(method):
  source = _bundle(method, ('a', 'b'))
  start = methods.Start(None, source=source, path='there', source_task='b')
  found = method.from_source(tiny.CONFIG, 3, start)
  for name, value in source.arrays.items():
    want = np.stack([value[1]] * 3)
    np.testing.assert_array_equal(found[name], want)
  shared = dataclasses.replace(method, shared=True)
  found = shared.from_source(tiny.CONFIG, 3, start)
  assert {len(value) for value in found.values()} == {1}
  open_task = dataclasses.replace(start, source_task=None)
  with pytest.raises(InputError, match='name one of a, b as SOURCE_TASK'):
    method.from_source(tiny.CONFIG, 3, open_task)


def test_a_run_does_not_start_from_what_was_learned_in_another_way():
  start = methods.Start(None, source=_bundle(methods.Prefix(2)), path='there')
  with pytest.raises(
    InputError, match="'there' has method 'prefix', and this run 'deep'"
  ):
    methods.DeepPrompts(2).from_source(tiny.CONFIG, 1, start)
  with pytest.raises(InputError, match='has hidden None, and this run 3'):
    methods.Prefix(2, hidden=3).from_source(tiny.CONFIG, 1, start)


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'places': ('encoder',)},
    {'places': ('decoder',), 'positions': 'unshifted'},
  ],
)
def test_what_peft_cannot_hold_is_said(settings, tmp_path):
  method = methods.Prefix(2, **settings)
  bundle = _bundle(method)
  with pytest.raises(InputError, match="PEFT's prefixes are at the decoder's"):
    bundle.to_peft(str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()
