"""T5's relatives of the transformers that is installed, there and back."""

import numpy as np
import pytest

from tests.goldens import make_relatives, networks
from tests.goldens.test_vocabulary import save_again

pytestmark = [pytest.mark.torch, pytest.mark.slow]

torch = pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip(
  'transformers', reason='transformers is not installed'
)


@pytest.mark.parametrize('name', make_relatives.RELATIVES)
def test_there_and_back(name, tmp_path):
  folder = tmp_path / name
  make_relatives.make(name, folder, seed=5)
  logits, largest, encoded, same = make_relatives.compare(folder)
  assert largest > 1
  assert logits < 1e-5 * largest
  assert encoded < 1e-5
  assert same
  save_again(folder, tmp_path / 'saved')
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'saved')
  io = networks.goldens.arrays(folder / 'io.npz')
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.tensor(io['input_ids']),
      attention_mask=torch.tensor(io['attention_mask']),
      decoder_input_ids=torch.tensor(io['decoder_input_ids']),
    )
  np.testing.assert_array_equal(out.logits, io['logits'])
