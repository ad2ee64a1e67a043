"""A method of PEFT over HF T5ForConditionalGeneration: one step.

MultitaskPromptTuning, or with --method LoRA (q and v, r = 8) or its prefix.

Random weights. Prints one JSON line. With --distill a teacher forward pass
(no grad) with per-task teacher prompts is added, and KL + hidden-state MSE
losses, the way a PEFT user has to write MPT's distillation by hand (PEFT has
none). ATTEMPT, which PEFT lacks too, is written by hand likewise.
"""

import json
import time
import warnings

from benchmarks import measure

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


def main():
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
  args = p.parse_args()
  if args.keep_heap:
    measure.keep_heap()

  import numpy as np
  import peft
  import torch
  import torch.nn.functional as F
  import transformers
  from transformers import T5ForConditionalGeneration

  transformers.logging.set_verbosity_error()
  rss_import = measure.rss_mb()

  device = measure.torch_device()
  torch.manual_seed(args.seed)
  torch.set_num_threads(args.threads)
  torch.set_float32_matmul_precision(args.matmul_precision)
  s = measure.SHAPES[args.model]
  dtype = getattr(torch, args.dtype)
  cfg = measure.hf_config(args.model, dropout_rate=args.dropout)
  extra = {} if args.attn is None else dict(attn_implementation=args.attn)
  base = T5ForConditionalGeneration._from_config(cfg, **extra).to(dtype)
  if args.method == 'multitask':
    wanted = peft.MultitaskPromptTuningConfig(
      task_type='SEQ_2_SEQ_LM',
      num_virtual_tokens=args.prompt_len,
      num_tasks=args.num_tasks,
      num_transformer_submodules=1,
      prompt_tuning_init='RANDOM',
    )
  elif args.method == 'attempt':
    wanted = None
  elif args.method == 'lora':
    wanted = peft.LoraConfig(task_type='SEQ_2_SEQ_LM', r=8, lora_alpha=8)
  else:
    wanted = peft.PrefixTuningConfig(
      task_type='SEQ_2_SEQ_LM',
      num_virtual_tokens=args.prompt_len,
      token_dim=s['heads'] * s['d_kv'],
    )
  if wanted is None:
    model = attempt(base, args, s['d_model'])
  else:
    model = peft.get_peft_model(base, wanted)
  model = model.to(device)
  model.train()
  trainable = [q for q in model.parameters() if q.requires_grad]
  opt = torch.optim.AdamW(trainable, lr=0.3)
  teacher_prompts = torch.randn(
    args.num_tasks, args.prompt_len, s['d_model'], dtype=dtype, device=device
  )
  student, teacher = model, base
  if args.compile:
    student, teacher = torch.compile(model), torch.compile(base)

  rng = np.random.default_rng(args.seed)
  if args.lengths:
    pool, pool_tasks = measure.load_lengths(args.lengths)
    order = rng.permutation(len(pool))

  def batch(i):
    """Builds batch i the way a data collator would."""
    if args.lengths:
      idx = [order[(i * args.batch + j) % len(pool)] for j in range(args.batch)]
      lens = [min(pool[k], args.input_len) for k in idx]
      tids = [pool_tasks[k] % args.num_tasks for k in idx]
      width = args.input_len if args.padding == 'max' else max(lens)
    else:
      lens, width = [args.input_len] * args.batch, args.input_len
      tids = rng.integers(0, args.num_tasks, args.batch).tolist()
    ids = np.full((args.batch, width), 0, np.int64)
    for r, n in enumerate(lens):
      ids[r, :n] = rng.integers(1, measure.VOCABULARY, n)
    ids = torch.from_numpy(ids)
    labels = torch.from_numpy(
      rng.integers(1, measure.VOCABULARY, (args.batch, args.target_len))
    )
    one = dict(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels)
    if args.method in ('multitask', 'attempt'):
      one['task_ids'] = torch.tensor(tids)
    return one, sum(lens)

  kw = dict(output_hidden_states=True) if args.distill else {}

  def teacher_forward(b):
    with torch.no_grad():
      emb = base.get_input_embeddings()(b['input_ids'])
      emb = torch.cat([teacher_prompts[b['task_ids']], emb], 1)
      mask = torch.cat(
        [
          torch.ones_like(b['attention_mask'][:, :1]).expand(
            -1, args.prompt_len
          ),
          b['attention_mask'],
        ],
        1,
      )
      return teacher(
        inputs_embeds=emb, attention_mask=mask, labels=b['labels'], **kw
      ), mask

  def loss_of(b):
    b = {name: array.to(device) for name, array in b.items()}
    out = student(**b, **kw)
    loss = out.loss
    if args.distill:
      t, mask = teacher_forward(b)
      kl = (
        F.kl_div(
          F.log_softmax(out.logits.float(), -1),
          F.log_softmax(t.logits.float(), -1),
          log_target=True,
          reduction='none',
        )
        .sum(-1)
        .mean()
      )
      m = mask[..., None].to(dtype)
      enc = list(
        zip(out.encoder_hidden_states, t.encoder_hidden_states, strict=False)
      )
      dec = list(
        zip(out.decoder_hidden_states, t.decoder_hidden_states, strict=False)
      )
      if args.hidden == 'last':
        enc, dec = enc[-1:], dec[-1:]
      mse = sum(
        (((a - c) ** 2) * m).sum() / (m.sum() * a.shape[-1]) for a, c in enc
      )
      mse = mse + sum(F.mse_loss(a, c) for a, c in dec)
      loss = loss + kl + mse
    return loss

  def step(b):
    loss = loss_of(b)
    loss.backward()
    opt.step()
    opt.zero_grad()
    return loss.item()

  t0 = time.perf_counter()
  for i in range(args.warmup):
    step(batch(i)[0])
  warm = time.perf_counter() - t0
  meter = measure.Meter()
  batches = [batch(args.warmup + i) for i in range(args.steps)]
  rows = meter.time(step, [(b,) for b, _ in batches])
  tokens = sum(n + args.batch * args.target_len for _, n in batches)
  peak_train = measure.peak_rss_mb()
  nf = max(3, args.steps // 2)
  with torch.no_grad():
    loss_of(batches[0][0])
    # item() waits for the device.
    fwd = meter.time(
      lambda b: loss_of(b).item(), [(b,) for b, _ in batches[:nf]]
    )
  out = dict(
    system='peft',
    **{
      k: getattr(args, k)
      for k in (
        'model',
        'method',
        'batch',
        'input_len',
        'prompt_len',
        'target_len',
        'dtype',
        'threads',
        'distill',
        'padding',
        'steps',
        'dropout',
        'keep_heap',
        'matmul_precision',
        'compile',
      )
    },
  )
  out['device'] = device
  if device == 'cuda':
    out['device'] = torch.cuda.get_device_name()
    out['peak_device_mb'] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
  out.update(attn=base.config._attn_implementation, lengths=bool(args.lengths))
  out.update(measure.summary(rows))
  total = sum(m['wall'] for m in rows)
  out.update(
    examples_per_s=round(args.batch * args.steps / total, 3),
    tokens_per_s=round(tokens / total, 1),
    cpu_s_total=round(sum(m['cpu'] for m in rows), 3),
    fwd_s=measure.summary(fwd)['step_s_median'],
    fwd_cpu_s=measure.summary(fwd)['cpu_s_median'],
    warmup_s=round(warm, 2),
    peak_rss_mb=peak_train,
    rss_after_import_mb=rss_import,
    dirty=meter.dirty,
    waited_s=round(meter.waited, 1),
    trainable=sum(q.numel() for q in trainable),
  )
  print(json.dumps(out))


if __name__ == '__main__':
  main()
