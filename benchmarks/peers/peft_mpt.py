"""A method of PEFT over HF T5ForConditionalGeneration: one step.

MultitaskPromptTuning, or with --method LoRA (q and v, r = 8) or its prefix.

Random weights. Prints one JSON line. With --distill a teacher forward pass
(no grad) with per-task teacher prompts is added, and KL + hidden-state MSE
losses, the way a PEFT user has to write MPT's distillation by hand (PEFT has
none). ATTEMPT, which PEFT lacks too, is written by hand likewise.
"""

import itertools
import time
import warnings

from benchmarks import measure

_TOLD = (
  'model method batch input_len prompt_len target_len dtype threads distill'
  ' padding steps dropout keep_heap matmul_precision compile'
)

warnings.filterwarnings('ignore')


def attempt(base, args, width):
  """ATTEMPT (Asai et al., EMNLP 2022) around a frozen model, by hand."""
  import torch
  import torch.nn.functional as F

  class Attempt(torch.nn.Module):
    def __init__(self):
      super().__init__()
      for parameter in base.parameters():
        parameter.requires_grad = False
      self.base, self.config = base, base.config
      size = args.prompt_len, width
      self.targets = torch.nn.Parameter(torch.rand(args.num_tasks, *size) - 0.5)
      self.register_buffer('sources', torch.rand(6, *size) - 0.5)
      self.down = torch.nn.Linear(width, 100, bias=False)
      self.up = torch.nn.Linear(100, width, bias=False)
      self.norm = torch.nn.LayerNorm(width)

    def forward(self, input_ids, attention_mask, task_ids, **rest):
      embedded = self.base.get_input_embeddings()(input_ids)
      hidden = embedded.masked_fill(
        attention_mask[:, :, None] == 0, float('-inf')
      )
      query = self.norm(self.up(F.silu(self.down(hidden.max(1)[0]))))
      target = self.targets[task_ids]
      prompts = torch.cat(
        [self.sources.expand(len(target), -1, -1, -1), target[:, None]], 1
      )
      scores = torch.einsum('bd,bsd->bs', query, prompts.max(2)[0])
      weights = F.softmax(scores / (width * 2.718281828), -1)
      mixed = torch.einsum('bs,bspd->bpd', weights, prompts) + target
      mask = attention_mask.new_ones(mixed.shape[:2])
      return self.base(
        inputs_embeds=torch.cat([mixed, embedded], 1),
        attention_mask=torch.cat([mask, attention_mask], 1),
        **rest,
      )

  return Attempt()


def arguments():
  p = measure.parser(__doc__)
  p.add_argument(
    '--hidden',
    choices=['last', 'all'],
    default='last',
    help='which hidden states the distillation MSE covers',
  )
  p.add_argument('--padding', choices=['max', 'longest'], default='max')
  p.add_argument(
    '--attn', default=None, help='attn_implementation (HF default)'
  )
  p.add_argument('--dropout', type=float, default=0.0)
  p.add_argument(
    '--matmul_precision',
    default='highest',
    help='torch.set_float32_matmul_precision; medium = bfloat16 '
    'products on CPUs that have them',
  )
  p.add_argument('--compile', action='store_true', help='torch.compile')
  p.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
  return p.parse_args()


def prompted(base, args):
  """The model that learns: PEFT's, or ATTEMPT."""
  import peft

  s = measure.SHAPES[args.model]
  if args.method == 'attempt':
    return attempt(base, args, s['d_model'])
  if args.method == 'multitask':
    wanted = peft.MultitaskPromptTuningConfig(
      task_type='SEQ_2_SEQ_LM',
      num_virtual_tokens=args.prompt_len,
      num_tasks=args.num_tasks,
      num_transformer_submodules=1,
      prompt_tuning_init='RANDOM',
    )
  elif args.method == 'lora':
    wanted = peft.LoraConfig(task_type='SEQ_2_SEQ_LM', r=8, lora_alpha=8)
  else:
    wanted = peft.PrefixTuningConfig(
      task_type='SEQ_2_SEQ_LM',
      num_virtual_tokens=args.prompt_len,
      token_dim=s['heads'] * s['d_kv'],
    )
  return peft.get_peft_model(base, wanted)


def batches(args):
  """Yields (batch, (examples, tokens)) the way a data collator builds them."""
  import numpy as np
  import torch

  rng = np.random.default_rng(args.seed)
  drawn = measure.examples(args)
  while True:
    lengths, tasks = zip(*itertools.islice(drawn, args.batch), strict=True)
    width = args.input_len if args.padding == 'max' else max(lengths)
    ids = np.zeros((args.batch, width), np.int64)
    for row, length in enumerate(lengths):
      ids[row, :length] = rng.integers(1, measure.VOCABULARY, length)
    ids = torch.from_numpy(ids)
    labels = rng.integers(1, measure.VOCABULARY, (args.batch, args.target_len))
    one = {
      'input_ids': ids,
      'attention_mask': (ids != 0).long(),
      'labels': torch.from_numpy(labels),
    }
    if args.method in ('multitask', 'attempt'):
      one['task_ids'] = torch.tensor(tasks)
    yield one, (args.batch, sum(lengths) + args.batch * args.target_len)


def distillation(out, taught, mask, hidden):
  """KL divergence of the answers and squared distance of hidden states."""
  import torch.nn.functional as F

  theirs, ours = (F.log_softmax(o.logits.float(), -1) for o in (taught, out))
  kl = F.kl_div(ours, theirs, log_target=True, reduction='none').sum(-1).mean()
  states = [
    list(zip(out[name], taught[name], strict=True))
    for name in ('encoder_hidden_states', 'decoder_hidden_states')
  ]
  encoder, decoder = (
    some[-1:] if hidden == 'last' else some for some in states
  )
  mask = mask[..., None].to(out.encoder_hidden_states[-1].dtype)
  mse = sum(
    (((a - b) ** 2) * mask).sum() / (mask.sum() * a.shape[-1])
    for a, b in encoder
  )
  return kl + mse + sum(F.mse_loss(a, b) for a, b in decoder)


class System:
  """A model, what is trained, and its steps."""

  def __init__(self, args):
    import torch
    from transformers import T5ForConditionalGeneration

    self.args, self.device = args, measure.torch_device()
    dtype = getattr(torch, args.dtype)
    config = measure.hf_config(args.model, dropout_rate=args.dropout)
    extra = {} if args.attn is None else {'attn_implementation': args.attn}
    base = T5ForConditionalGeneration._from_config(config, **extra).to(dtype)
    model = prompted(base, args).to(self.device)
    model.train()
    self.base, self.attn = base, base.config._attn_implementation
    self.trained = [q for q in model.parameters() if q.requires_grad]
    self.optimizer = torch.optim.AdamW(self.trained, lr=0.3)
    size = args.num_tasks, args.prompt_len, config.d_model
    self.prompts = torch.randn(size, dtype=dtype, device=self.device)
    wrap = torch.compile if args.compile else lambda model: model
    self.student, self.teacher = wrap(model), wrap(base)

  def teach(self, batch):
    """The teachers' output, and the mask of its encoder's positions."""
    import torch

    with torch.no_grad():
      embedded = self.base.get_input_embeddings()(batch['input_ids'])
      prompts = self.prompts[batch['task_ids']]
      mask = batch['attention_mask']
      mask = torch.cat([mask.new_ones(prompts.shape[:2]), mask], 1)
      return self.teacher(
        inputs_embeds=torch.cat([prompts, embedded], 1),
        attention_mask=mask,
        labels=batch['labels'],
        output_hidden_states=True,
      ), mask

  def loss(self, batch):
    """The loss of a batch, with the teachers' part if that is asked for."""
    batch = {name: array.to(self.device) for name, array in batch.items()}
    if not self.args.distill:
      return self.student(**batch).loss
    out = self.student(**batch, output_hidden_states=True)
    taught, mask = self.teach(batch)
    return out.loss + distillation(out, taught, mask, self.args.hidden)

  def step(self, batch):
    """Trains on a batch."""
    loss = self.loss(batch)
    loss.backward()
    self.optimizer.step()
    self.optimizer.zero_grad()
    return loss.item()

  def forward(self, batch):
    """Takes the loss of a batch without gradients."""
    import torch

    with torch.no_grad():
      return self.loss(batch).item()  # Waits for the device.


def main():
  args = arguments()
  if args.keep_heap:
    measure.keep_heap()
  import peft  # noqa: F401
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  found = {'system': 'peft', 'rss_after_import_mb': measure.rss_mb()}
  torch.manual_seed(args.seed)
  torch.set_num_threads(args.threads)
  torch.set_float32_matmul_precision(args.matmul_precision)
  system, drawn = System(args), batches(args)
  begin = time.perf_counter()
  for batch, _ in itertools.islice(drawn, args.warmup):
    system.step(batch)
  found['warmup_s'] = round(time.perf_counter() - begin, 2)
  meter = measure.Meter()
  chosen, counts = zip(*itertools.islice(drawn, args.steps), strict=True)
  rows = meter.time(system.step, [(batch,) for batch in chosen])
  found['peak_rss_mb'] = measure.peak_rss_mb()
  system.forward(chosen[0])
  some = chosen[: max(3, args.steps // 2)]
  forwards = meter.time(system.forward, [(batch,) for batch in some])
  found |= {
    'device': system.device,
    'attn': system.attn,
    'lengths': bool(args.lengths),
    'trainable': sum(q.numel() for q in system.trained),
    **measure.of_training(meter, rows, forwards, counts),
  }
  if system.device == 'cuda':
    peak = torch.cuda.max_memory_allocated()
    found['device'] = torch.cuda.get_device_name()
    found['peak_device_mb'] = round(peak / 2**20, 1)
  measure.report(args, _TOLD, found)


if __name__ == '__main__':
  main()
